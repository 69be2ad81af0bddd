//! Whether a side takes no more for now, so that whoever feeds it is not read from (Envoy's watermarks).
//! It must not know which side that is.

/// Who counts what becomes of a side.
pub(crate) trait Watch {
    /// It takes no more.
    fn full(&self);
    /// It takes more again.
    fn drained(&self);
}

/// A side that may take no more. Each change is told once; one that is dropped is full no longer.
pub(crate) struct Watermark<W: Watch> {
    watch: W,
    full: bool,
}

impl<W: Watch> Watermark<W> {
    pub(crate) fn new(watch: W) -> Self {
        Self { watch, full: false }
    }

    pub(crate) fn set(&mut self, full: bool) {
        match (std::mem::replace(&mut self.full, full), full) {
            (false, true) => self.watch.full(),
            (true, false) => self.watch.drained(),
            (false, false) | (true, true) => {}
        }
    }
}

impl<W: Watch> Drop for Watermark<W> {
    fn drop(&mut self) {
        self.set(false);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    struct Told<'t>(&'t RefCell<Vec<bool>>);

    impl Watch for Told<'_> {
        fn full(&self) {
            self.0.borrow_mut().push(true);
        }

        fn drained(&self) {
            self.0.borrow_mut().push(false);
        }
    }

    #[test]
    fn each_change_is_told_once_and_the_end_is_one() {
        let told = RefCell::default();
        let mut watermark = Watermark::new(Told(&told));
        [false, true, true, false, true].into_iter().for_each(|full| watermark.set(full));
        drop(watermark);
        assert_eq!(told.into_inner(), [true, false, true, false]);
    }
}
