//! Encoded bytes as the messages have them.

use bytes::Bytes;

use super::peer::Encoding as Sent;
use crate::node::{DecodeError, Encoded, Encoding};

/// The fields of a message: encoding, plain length, data.
pub(super) fn parts(encoded: Encoded) -> (i32, u64, Bytes) {
    let Encoded { encoding, plain_len, data } = encoded;
    match encoding {
        Encoding::Plain => (Sent::Plain.into(), 0, data),
        Encoding::Lz4 => (Sent::Lz4.into(), plain_len as u64, data),
        Encoding::Zstd => (Sent::Zstd.into(), plain_len as u64, data),
    }
}

/// The bytes themselves. Takes time where they are compressed.
pub(super) fn decode(encoding: i32, plain_length: u64, data: Bytes) -> Result<Bytes, DecodeError> {
    let encoding = match Sent::try_from(encoding) {
        Ok(Sent::Plain) => return Ok(data),
        Ok(Sent::Lz4) => Encoding::Lz4,
        Ok(Sent::Zstd) => Encoding::Zstd,
        Err(_) => return Err(DecodeError::Unknown(encoding)),
    };
    let plain_len =
        usize::try_from(plain_length).map_err(|_| DecodeError::TooLong(plain_length))?;
    Encoded { encoding, plain_len, data }.decode()
}

/// The same on a thread that has time.
pub(super) async fn decode_apart(
    encoding: i32,
    plain_length: u64,
    data: Bytes,
) -> Result<Bytes, DecodeError> {
    if encoding == i32::from(Sent::Plain) {
        return Ok(data);
    }
    let decoded = tokio::task::spawn_blocking(move || decode(encoding, plain_length, data));
    // Nobody wants them where the daemon stops.
    decoded.await.unwrap_or(Err(DecodeError::Damaged))
}

#[cfg(test)]
mod tests {
    use super::{Bytes, DecodeError, decode, parts};
    use crate::config::Compression;
    use crate::node::Encoder;

    #[test]
    fn bytes_come_as_they_were() {
        let plain = Bytes::from(vec![7; 100_000]);
        for compression in [Compression::Off, Compression::Lz4, Compression::Zstd] {
            let (encoding, len, data) = parts(Encoder::new(compression).encode(plain.clone()));
            assert!(decode(encoding, len, data).expect("whole") == plain);
        }
    }

    #[test]
    fn what_another_version_sends_is_refused() {
        let refused = decode(9, 10, Bytes::from_static(b"whatever"));
        assert!(matches!(refused, Err(DecodeError::Unknown(9))));
        let refused = decode(1, u64::MAX, Bytes::from_static(b"whatever"));
        assert!(matches!(refused, Err(DecodeError::TooLong(_))));
    }
}
