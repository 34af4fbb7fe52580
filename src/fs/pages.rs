//! Scans in bounded memory.

use super::keys::KeyRange;
use super::view::{Pair, View};

/// Pairs of a range of keys, a page at a time. The view may change between pages: what is put or
/// deleted behind the last page is not looked at again.
#[derive(Clone, Debug)]
pub struct Pages {
    range: KeyRange,
    limit: usize,
    done: bool,
}

impl Pages {
    /// A scan of `range` from its start, at most `limit` pairs (at least one) at a time.
    #[must_use]
    pub fn new(range: KeyRange, limit: usize) -> Self {
        Self { range, limit: limit.max(1), done: false }
    }

    /// The next pairs, ascending; never an empty page.
    ///
    /// # Errors
    /// When this replica cannot read its own state.
    pub fn next<V: View + ?Sized>(&mut self, view: &V) -> Result<Option<Vec<Pair>>, V::Error> {
        if self.done {
            return Ok(None);
        }
        let page = view.scan(&self.range.from, &self.range.to, self.limit)?;
        self.done = page.len() < self.limit;
        let Some((last, _)) = page.last() else { return Ok(None) };
        self.range.from.clone_from(last);
        self.range.from.push(0);
        Ok(Some(page))
    }
}
