//! What a buffer holds, shows and hands out.

use super::{
    Batch, ByteRange, Ino, Instant, LogIndex, NewBytes, SessionId, SetTimes, State, proto,
};

const INLINE_MAX: usize = 64 << 10;

impl State {
    fn take_all(&mut self) -> Option<Batch> {
        self.take(Ino(7), INLINE_MAX)
    }
}

fn at(seconds: i64) -> proto::Time {
    proto::Time { seconds, nanos: 0 }
}

fn bytes(offset: Option<u64>, len: usize, seconds: i64) -> NewBytes {
    let data = vec![1; len].into();
    NewBytes { offset, data, kill_suid_sgid: false, time: at(seconds), only_in: None }
}

/// Bytes stay visible from the WRITE until they are applied, and attributes only rise.
#[test]
fn visible_until_settled() {
    let mut state = State::default();
    assert!(state.accept(&bytes(Some(10), 100, 1), Instant::now()));
    let batch = state.take_all().expect("dirty");
    assert_eq!((batch.writes.len(), batch.ordered, batch.time.seconds), (1, false, 1));
    assert_eq!(state.overlay(ByteRange::at(0, 50)).len(), 1);
    assert!(state.accept(&bytes(Some(0), 20, 2), Instant::now()));
    let attributes = state.attributes().expect("unsettled");
    assert_eq!((attributes.end, attributes.bytes), (110, 120));
    assert_eq!((attributes.written, attributes.changed), (Some(at(2)), at(2)));
    let target = state.accepted();
    assert_eq!(state.settle(Ok(LogIndex(5))), 100);
    assert!(!state.is_settled(target));
    state.take_all().expect("the second write");
    state.settle(Ok(LogIndex(6)));
    assert!(state.is_settled(target));
    assert_eq!((state.attributes(), state.weight(), state.committed()), (None, 0, LogIndex(6)));
}

/// Appended and positioned bytes are never pending together.
#[test]
fn kinds_do_not_mix() {
    let mut state = State::default();
    assert!(state.accept(&bytes(None, 10, 1), Instant::now()));
    assert!(!state.accept(&bytes(Some(0), 10, 1), Instant::now()));
    assert!(state.has_appends());
    assert!(state.take_all().expect("pending").ordered);
    assert!(state.has_appends(), "until they are applied");
    assert!(state.accept(&bytes(Some(0), 10, 1), Instant::now()));
    assert!(!state.accept(&bytes(None, 10, 1), Instant::now()));
    state.settle(Ok(LogIndex(1)));
    assert!(!state.has_appends());
}

/// An appending write(2) is one piece of one command, however long; short ones share.
#[test]
fn appends_are_never_divided() {
    let mut state = State::default();
    for len in [1 << 20, 100, 200, INLINE_MAX, 1] {
        assert!(state.accept(&bytes(None, len, 1), Instant::now()));
    }
    let sizes: Vec<Vec<usize>> = state
        .take_all()
        .expect("pending")
        .writes
        .iter()
        .map(|write| write.pieces.iter().map(|piece| piece.data.len()).collect())
        .collect();
    assert_eq!(sizes, [vec![1 << 20], vec![100, 200], vec![INLINE_MAX], vec![1]]);
}

/// A lost lot is a failure that a handle can tell from those that it has already reported.
#[test]
fn failures_are_counted() {
    let mut state = State::default();
    state.accept(&bytes(Some(0), 1, 1), Instant::now());
    state.take_all();
    state.settle(Err(libc::ENOSPC));
    assert_eq!(state.failures(), (1, libc::ENOSPC));
    assert!(state.is_settled(1), "nobody waits for lost bytes");
}

/// A background commit is started once, and again only after it took what there was.
#[test]
fn scheduled_once() {
    let mut state = State::default();
    assert!(!state.schedule_commit(), "nothing to commit");
    state.accept(&bytes(Some(0), 1, 1), Instant::now());
    assert!(state.schedule_commit());
    assert!(!state.schedule_commit());
    state.take_all();
    state.settle(Ok(LogIndex(1)));
    state.accept(&bytes(Some(0), 1, 1), Instant::now());
    assert!(state.schedule_commit());
}

/// A change of nothing but ctime shows at once, is committed like bytes, and is no byte.
#[test]
fn a_ctime_by_itself() {
    let mut state = State::default();
    state.accept_ctime(at(5), Instant::now());
    assert!(state.dirty_since().is_some() && state.schedule_commit());
    let shown = state.attributes().expect("unsettled");
    assert_eq!((shown.end, shown.bytes, shown.written, shown.changed), (0, 0, None, at(5)));
    let target = state.accepted();
    let batch = state.take_all().expect("pending");
    assert!(batch.is_portable() && batch.writes.is_empty());
    assert_eq!(batch.ctime, Some(at(5)));
    assert_eq!((state.attributes(), state.weight()), (Some(shown), 1));
    assert!(!state.is_settled(target));
    assert_eq!(state.settle(Ok(LogIndex(3))), 1);
    assert!(state.is_settled(target));
    assert_eq!((state.attributes(), state.weight(), state.committed()), (None, 0, LogIndex(3)));
}

/// One command carries a ctime and the bytes before it; bytes that come later bring their own.
#[test]
fn a_ctime_with_bytes() {
    let mut state = State::default();
    state.accept(&bytes(Some(0), 3, 1), Instant::now());
    state.accept_ctime(at(5), Instant::now());
    let shown = state.attributes().expect("unsettled");
    assert_eq!((shown.written, shown.changed, shown.bytes), (Some(at(1)), at(5), 3));
    assert_eq!(state.weight(), 4);
    let batch = state.take_all().expect("pending");
    assert!(batch.is_portable());
    assert_eq!(batch.ctime, Some(at(5)));
    let mut set = proto::SetAttr::default();
    batch.put_into(&mut set);
    assert_eq!((set.write.map(|write| write.pieces.len()), set.written), (Some(1), Some(at(1))));
    assert_eq!(state.settle(Ok(LogIndex(3))), 4);

    state.accept_ctime(at(5), Instant::now());
    state.accept(&bytes(Some(0), 3, 5), Instant::now());
    assert_eq!(state.take_all().expect("pending").ctime, None);
    assert_eq!(state.settle(Ok(LogIndex(4))), 4);
}

/// Times that are set after bytes go out with them, and come after them; bytes that come later have to
/// wait.
#[test]
fn times_with_bytes() {
    let mut state = State::default();
    let set = |mtime| SetTimes { atime: None, mtime: Some(at(mtime)) };
    let accept =
        |state: &mut State, times| state.accept_times(times, at(5), INLINE_MAX, Instant::now());
    assert!(!accept(&mut state, set(3)), "no bytes to go with");
    state.accept(&bytes(Some(0), 3, 4), Instant::now());
    assert!(accept(&mut state, set(2)) && accept(&mut state, set(3)));
    assert!(accept(&mut state, SetTimes { atime: Some(at(9)), mtime: None }));
    let shown = state.attributes().expect("unsettled");
    let both = SetTimes { atime: Some(at(9)), mtime: Some(at(3)) };
    assert_eq!((shown.set, shown.written, shown.changed), (both, None, at(5)));
    assert!(!state.accept(&bytes(Some(0), 3, 6), Instant::now()), "would be set back");

    let batch = state.take_all().expect("pending");
    assert_eq!((batch.time, batch.ctime), (at(4), Some(at(5))));
    let mut set_attr = proto::SetAttr { mtime: Some(at(7)), ..<_>::default() };
    batch.put_into(&mut set_attr);
    assert_eq!((set_attr.atime, set_attr.mtime), (Some(at(9)), Some(at(7))), "the later one");
    assert_eq!(state.attributes(), Some(shown));
    assert!(state.accept(&bytes(Some(0), 3, 6), Instant::now()), "after the lot");
    let shown = state.attributes().expect("unsettled");
    assert_eq!((shown.set, shown.written), (both, Some(at(6))));
    state.applied(ByteRange::at(0, 3));
    let shown = state.attributes().expect("pending");
    assert_eq!((shown.set, shown.written), (SetTimes::default(), Some(at(6))), "in the record");
    state.settle(Ok(LogIndex(3)));

    state.accept(&bytes(Some(0), INLINE_MAX + 1, 1), Instant::now());
    assert!(!accept(&mut state, set(3)), "two commands");
    state.take_all();
    state.settle(Ok(LogIndex(4)));

    let locked = NewBytes { only_in: Some(SessionId(7)), ..bytes(Some(0), 3, 1) };
    assert!(state.accept(&locked, Instant::now()));
    assert!(!accept(&mut state, set(3)), "the lock may be another's");
}

/// A change of attributes carries positioned bytes that fit one command, and nothing else.
#[test]
fn what_can_be_carried() {
    let mut state = State::default();
    assert!(state.take_carried(Ino(7), INLINE_MAX).is_none(), "nothing");
    state.accept(&bytes(None, 1, 1), Instant::now());
    assert!(state.take_carried(Ino(7), INLINE_MAX).is_none(), "appended");
    state.take_all();
    state.settle(Ok(LogIndex(1)));
    state.accept(&bytes(Some(0), INLINE_MAX + 1, 1), Instant::now());
    assert!(state.take_carried(Ino(7), INLINE_MAX).is_none(), "two commands");
    assert!(state.take_carried(Ino(7), INLINE_MAX + 1).expect("one").is_portable());
}

/// What a change of attributes carries is not shown over the record which that change left: it
/// may have cut the bytes or set their time back.
#[test]
fn what_was_carried_does_not_come_back() {
    let mut state = State::default();
    state.accept(&bytes(Some(10), 5, 1), Instant::now());
    state.take_carried(Ino(7), INLINE_MAX).expect("fits");
    state.applied(ByteRange::at(0, 5));
    assert_eq!(state.attributes().map(|shown| shown.end), Some(15), "applied was another");
    state.accept(&bytes(Some(0), 1, 2), Instant::now());
    state.applied(ByteRange::at(10, 5));
    let shown = state.attributes().expect("pending");
    assert_eq!((shown.end, shown.bytes), (1, 1));
    assert_eq!(state.overlay(ByteRange::at(0, 50)).len(), 1);
    assert_eq!((state.weight(), state.settle(Ok(LogIndex(1)))), (6, 5));
}

/// A flush only raises: until it is settled it is shown, applied or not.
#[test]
fn a_flush_is_shown_until_it_is_settled() {
    let mut state = State::default();
    state.accept(&bytes(Some(10), 5, 1), Instant::now());
    state.take_all().expect("dirty");
    state.applied(ByteRange::at(10, 5));
    assert_eq!(state.attributes().map(|shown| shown.end), Some(15));
}
