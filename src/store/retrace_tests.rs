//! A state that is built a second time.
