//! How bytes travel between nodes: plain, or compressed where that saves something.
//!
//! Who sends decides; who receives decodes whatever it is told, into no more memory than it allows.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::handle::Handle;
use crate::config::Compression;

/// Nothing longer is compressed, and nothing is decoded to more.
pub const MAX_DECODED: usize = 8 << 20;
/// What is compressed first, to find out whether the rest is worth it.
const SAMPLE: usize = 8 << 10;
/// Shorter bytes are sent as they are.
const MIN: usize = 1 << 10;
/// After bytes that do not compress, this many pieces of the same stream are not tried.
const PAUSE: u32 = 7;
/// The fastest level: disks and networks here are as fast.
const ZSTD_LEVEL: i32 = 1;

/// What was done to bytes that travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Nothing.
    Plain,
    /// One LZ4 block.
    Lz4,
    /// One Zstandard frame.
    Zstd,
}

/// Bytes as they travel.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// What was done to them.
    pub encoding: Encoding,
    /// How many there are without that.
    pub plain_len: usize,
    /// What travels.
    pub data: Bytes,
}

/// Why received bytes cannot be decoded. Whoever sent them is of another version, or they came damaged.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// More than anybody sends.
    #[error("compressed bytes say that they are {0} bytes, which is more than {MAX_DECODED}")]
    TooLong(u64),
    /// Another version of this program knows more encodings.
    #[error("encoding {0} is not known: bring this node to the version of its peers")]
    Unknown(i32),
    /// Other bytes than were said.
    #[error("compressed bytes came damaged")]
    Damaged,
}

/// Encodes the pieces of one stream; remembers whether that is worth it.
#[derive(Clone, Debug)]
pub struct Encoder {
    compression: Compression,
    /// So many pieces are not tried.
    pause: u32,
}

impl Encoder {
    /// For a new stream.
    #[must_use]
    pub fn new(compression: Compression) -> Self {
        Self { compression, pause: 0 }
    }

    /// Whether the next piece may be compressed at all, which takes time.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.compression != Compression::Off
    }

    /// The next piece: compressed where that saves an eighth.
    pub fn encode(&mut self, plain: Bytes) -> Encoded {
        let plain_len = plain.len();
        if !self.is_on() || !(MIN..=MAX_DECODED).contains(&plain_len) {
            return Encoded::plain(plain);
        }
        if let Some(left) = self.pause.checked_sub(1) {
            self.pause = left;
            return Encoded::plain(plain);
        }
        let middle = plain_len / 2;
        let sample = &plain[middle..plain_len.min(middle + SAMPLE)];
        let compressed = if saves(sample.len(), lz4_flex::block::compress(sample).len()) {
            compress(self.compression, &plain).filter(|data| saves(plain_len, data.len()))
        } else {
            None
        };
        let Some(data) = compressed else {
            self.pause = PAUSE;
            return Encoded::plain(plain);
        };
        let encoding = match self.compression {
            Compression::Zstd => Encoding::Zstd,
            Compression::Lz4 | Compression::Off => Encoding::Lz4,
        };
        Encoded { encoding, plain_len, data: data.into() }
    }
}

impl Encoded {
    /// Bytes as they are.
    #[must_use]
    pub fn plain(data: Bytes) -> Self {
        Self { encoding: Encoding::Plain, plain_len: data.len(), data }
    }

    /// The bytes themselves. Takes time where they are compressed.
    ///
    /// # Errors
    /// When they are not what they are said to be.
    pub fn decode(self) -> Result<Bytes, DecodeError> {
        let Self { encoding, plain_len, data } = self;
        let found = match encoding {
            Encoding::Plain => return Ok(data),
            _ if plain_len > MAX_DECODED => return Err(DecodeError::TooLong(plain_len as u64)),
            // Neither writes beyond what it is given.
            Encoding::Lz4 => lz4_flex::block::decompress(&data, plain_len).ok(),
            Encoding::Zstd => zstd::bulk::decompress(&data, plain_len).ok(),
        };
        let found = found.filter(|found| found.len() == plain_len);
        found.map(Bytes::from).ok_or(DecodeError::Damaged)
    }
}

/// File bytes that were sent to peers.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    plain: AtomicU64,
    sent: AtomicU64,
}

impl Traffic {
    /// These are sent to one peer.
    pub(super) fn sent(&self, bytes: &Encoded) {
        self.plain.fetch_add(bytes.plain_len as u64, Ordering::Relaxed);
        self.sent.fetch_add(bytes.data.len() as u64, Ordering::Relaxed);
    }

    fn total(&self) -> (u64, u64) {
        (self.plain.load(Ordering::Relaxed), self.sent.load(Ordering::Relaxed))
    }
}

impl Handle {
    /// Bytes that a peer has asked for, as they travel. Takes time.
    #[must_use]
    pub fn encode(&self, data: Bytes) -> Encoded {
        let encoded = Encoder::new(self.0.config.compression).encode(data);
        self.0.traffic.sent(&encoded);
        encoded
    }

    /// File bytes that were sent to peers, and as how many they travelled.
    #[must_use]
    pub fn traffic(&self) -> (u64, u64) {
        self.0.traffic.total()
    }
}

fn compress(compression: Compression, plain: &[u8]) -> Option<Vec<u8>> {
    match compression {
        Compression::Off => None,
        Compression::Lz4 => Some(lz4_flex::block::compress(plain)),
        Compression::Zstd => zstd::bulk::compress(plain, ZSTD_LEVEL).ok(),
    }
}

fn saves(plain: usize, compressed: usize) -> bool {
    compressed <= plain - plain / 8
}

#[cfg(test)]
mod tests {
    use super::{Bytes, Compression, DecodeError, Encoded, Encoder, Encoding, MAX_DECODED, PAUSE};

    const BOTH: [(Compression, Encoding); 2] =
        [(Compression::Lz4, Encoding::Lz4), (Compression::Zstd, Encoding::Zstd)];

    fn text(len: usize) -> Bytes {
        (0..len).map(|at| b"step 17, loss 0.25\n"[at % 19]).collect()
    }

    /// xorshift: nothing compresses it.
    fn noise(len: usize) -> Bytes {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let byte = |_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        };
        (0..len).map(byte).collect()
    }

    #[test]
    fn what_compresses_comes_back_whole() {
        for (compression, encoding) in BOTH {
            for len in [super::MIN, 100_000, 1 << 20, MAX_DECODED] {
                let encoded = Encoder::new(compression).encode(text(len));
                assert_eq!((encoded.encoding, encoded.plain_len), (encoding, len));
                assert!(encoded.data.len() < len / 4, "{encoding:?} of {len} bytes");
                assert!(encoded.decode().expect("whole") == text(len));
            }
        }
    }

    #[test]
    fn what_does_not_compress_is_sent_as_it_is() {
        for (compression, encoding) in BOTH {
            let mut encoder = Encoder::new(compression);
            for piece in [noise(1 << 20), text(10), text(0), text(MAX_DECODED + 1)] {
                let encoded = Encoder::new(compression).encode(piece.clone());
                assert_eq!(encoded.encoding, Encoding::Plain);
                assert!(encoded.decode().expect("plain") == piece);
            }
            // After it, some are not even tried.
            assert_eq!(encoder.encode(noise(5000)).encoding, Encoding::Plain);
            for _ in 0..PAUSE {
                assert_eq!(encoder.encode(text(5000)).encoding, Encoding::Plain);
            }
            assert_eq!(encoder.encode(text(5000)).encoding, encoding);
            assert_eq!(encoder.encode(text(5000)).encoding, encoding);
        }
        assert_eq!(Encoder::new(Compression::Off).encode(text(5000)).encoding, Encoding::Plain);
    }

    /// A sample that compresses is not enough.
    #[test]
    fn what_saves_too_little_is_sent_as_it_is() {
        let mut mixed = noise(1 << 20).to_vec();
        let middle = mixed.len() / 2;
        mixed[middle..middle + 20_000].fill(7);
        for (compression, _) in BOTH {
            let encoded = Encoder::new(compression).encode(mixed.clone().into());
            assert_eq!(encoded.encoding, Encoding::Plain);
        }
    }

    /// A few bytes that would become very many, and others than were said.
    #[test]
    fn bombs_and_damage_are_refused() {
        let zeros = vec![0; 256 << 20];
        let bombs = [
            (Encoding::Lz4, lz4_flex::block::compress(&zeros)),
            (Encoding::Zstd, zstd::bulk::compress(&zeros, 1).expect("compressed")),
        ];
        for (encoding, bomb) in bombs {
            let said =
                |plain_len| Encoded { encoding, plain_len, data: bomb.clone().into() }.decode();
            assert!(matches!(said(zeros.len()), Err(DecodeError::TooLong(_))));
            assert!(matches!(said(MAX_DECODED), Err(DecodeError::Damaged)));
            assert!(matches!(said(10), Err(DecodeError::Damaged)));
        }
        for (compression, _) in BOTH {
            let encoded = Encoder::new(compression).encode(text(100_000));
            let wrong = Encoded { plain_len: 99_999, ..encoded.clone() };
            assert!(matches!(wrong.decode(), Err(DecodeError::Damaged)));
            let wrong = Encoded { plain_len: 100_001, ..encoded.clone() };
            assert!(matches!(wrong.decode(), Err(DecodeError::Damaged)));
            let cut = Encoded { data: encoded.data.slice(..encoded.data.len() / 2), ..encoded };
            assert!(matches!(cut.decode(), Err(DecodeError::Damaged)));
        }
    }
}
