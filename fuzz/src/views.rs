//! Views: construction and access with any shape and strides. Whatever is accepted lies inside its slice, and of an output no
//! two elements share a place; whatever is refused is refused for the reason that the documentation gives.

use crate::common::same;
use crate::input::Extent;
use arbitrary::Arbitrary;
use resblock::{Error, MatMut, MatRef, Weights};

#[derive(Debug, Arbitrary)]
pub struct Case {
    len: u8,
    shape: (Extent, Extent),
    strides: (Extent, Extent),
    places: Vec<(Extent, Extent)>,
    panels: bool,
}

/// A view that is asked for.
#[derive(Debug, Clone, Copy)]
struct Asked {
    rows: usize,
    cols: usize,
    strides: (usize, usize),
}

impl Asked {
    fn is_empty(self) -> bool {
        self.rows == 0 || self.cols == 0
    }

    /// Elements from the first to one past the last, in arithmetic that does not overflow.
    fn span(self) -> u128 {
        let along = |n: usize, stride: usize| (n as u128 - 1) * stride as u128;
        along(self.rows, self.strides.0).saturating_add(along(self.cols, self.strides.1)).saturating_add(1)
    }

    fn readable(self, len: usize) -> Result<(), Error> {
        let (Self { rows, cols, strides }, operand) = (self, "data");
        if self.is_empty() {
            return Ok(());
        }
        match usize::try_from(self.span()).ok().filter(|&n| n <= isize::MAX as usize / 4) {
            None => Err(Error::Overflow { operand, rows, cols, strides }),
            Some(needed) if needed > len => Err(Error::TooShort { operand, rows, cols, strides, needed, found: len }),
            Some(_) => Ok(()),
        }
    }

    fn writable(self, len: usize) -> Result<(), Error> {
        self.readable(len)?;
        if self.is_empty() {
            return Ok(());
        }
        let Self { rows, cols, strides } = self;
        let lines_apart = |n: usize, stride: usize, m: usize, other: usize| {
            (m == 1 || other > 0) && (n == 1 || stride as u128 > (m as u128 - 1) * other as u128)
        };
        let apart = lines_apart(rows, strides.0, cols, strides.1) || lines_apart(cols, strides.1, rows, strides.0);
        if apart { Ok(()) } else { Err(Error::Overlap { operand: "data", rows, cols, strides }) }
    }

    fn row_major(self, len: usize) -> Result<(), Error> {
        let Self { rows, cols, .. } = self;
        match rows.checked_mul(cols) {
            None => Err(Error::Overflow { operand: "data", rows, cols, strides: (cols, 1) }),
            Some(expected) if expected != len => Err(Error::Length { operand: "data", expected, found: len }),
            Some(_) => Ok(()),
        }
    }

    /// Where element (i, j) lies, if it is one.
    fn at(self, i: usize, j: usize) -> Option<usize> {
        (i < self.rows && j < self.cols).then(|| i * self.strides.0 + j * self.strides.1)
    }
}

pub fn run(case: &Case) {
    let mut memory: [f32; 256] = std::array::from_fn(|i| i as f32);
    let data = &mut memory[..case.len.into()];
    let ((Extent(rows), Extent(cols)), (rs, cs)) = (case.shape, (case.strides.0.0, case.strides.1.0));
    let asked = Asked { rows, cols, strides: (rs, cs) };
    let tight = Asked { strides: (cols, 1), ..asked };

    assert_eq!(MatRef::new(data, rows, cols).map(|_| ()), tight.row_major(data.len()), "{tight:?}");
    assert_eq!(MatMut::new(data, rows, cols).map(|_| ()), tight.row_major(data.len()), "{tight:?}");
    match MatRef::with_strides(data, rows, cols, rs, cs) {
        Err(error) => assert_eq!(Err(error), asked.readable(data.len())),
        Ok(view) => {
            assert_eq!(asked.readable(data.len()), Ok(()));
            read(view, asked, &case.places);
            if case.panels {
                pack(view);
            }
        }
    }
    let len = data.len();
    match MatMut::with_strides(data, rows, cols, rs, cs) {
        Err(error) => assert_eq!(Err(error), asked.writable(len)),
        Ok(_) => {
            assert_eq!(asked.writable(len), Ok(()));
            write(data, asked, &case.places);
        }
    }
}

fn read(view: MatRef<'_>, asked: Asked, places: &[(Extent, Extent)]) {
    assert_eq!((view.rows(), view.cols()), (asked.rows, asked.cols));
    assert_eq!(view.shape(), view.t().t().shape());
    assert_eq!(view.t().shape(), (asked.cols, asked.rows));
    let corners = [(0, 0), (asked.rows.wrapping_sub(1), asked.cols.wrapping_sub(1)), (asked.rows, 0), (0, asked.cols)];
    for (i, j) in corners.into_iter().chain(places.iter().take(8).map(|&(Extent(i), Extent(j))| (i, j))) {
        let want = asked.at(i, j).map(|at| at as f32);
        assert_eq!(view.get(i, j), want);
        assert_eq!(view.t().get(j, i), want);
    }
}

/// Every write lands in its place and nowhere else, and no two elements share one.
fn write(data: &mut [f32], asked: Asked, places: &[(Extent, Extent)]) {
    let Asked { rows, cols, strides: (rs, cs) } = asked;
    let mut expected = data.to_vec();
    let mut view = MatMut::with_strides(data, rows, cols, rs, cs).expect("a view, as before");
    assert_eq!((view.rows(), view.cols(), view.shape()), (rows, cols, (rows, cols)));
    for (k, &(Extent(i), Extent(j))) in places.iter().take(8).enumerate() {
        let value = -1.0 - k as f32;
        let inside = if k % 2 == 0 { view.set(i, j, value) } else { view.reborrow().t().set(j, i, value) };
        assert_eq!(inside, asked.at(i, j).is_some());
        assert_eq!(view.as_ref().get(i, j), inside.then_some(value));
        if let Some(at) = asked.at(i, j) {
            expected[at] = value;
        }
    }
    assert_eq!(data, expected);
    if !asked.is_empty() {
        // Elements that do not share places are no more than the places there are.
        assert!(rows.saturating_mul(cols) <= data.len(), "{asked:?} has more elements than places");
        let mut taken = [false; 256];
        for (i, j) in (0..rows).flat_map(|i| (0..cols).map(move |j| (i, j))) {
            let at = i * rs + j * cs;
            assert!(!std::mem::replace(&mut taken[at], true), "{asked:?}: two elements at {at}");
        }
    }
}

/// A copy in panels holds the elements of the view, and gives them back.
fn pack(view: MatRef<'_>) {
    let (rows, cols) = view.shape();
    let Some(len) = rows.checked_mul(cols).filter(|&len| len <= 512 && rows.max(cols) <= 512) else { return };
    let panels = Weights::new(view).expect("a small matrix");
    let mut out = vec![f32::NAN; len];
    panels.write_to(MatMut::new(&mut out, rows, cols).expect("a matrix")).expect("the same shape");
    for (k, &value) in out.iter().enumerate() {
        let (i, j) = (k / cols, k % cols);
        assert!(view.get(i, j).is_some_and(|want| same(value, want)) && panels.get(i, j) == view.get(i, j));
    }
    assert_eq!((panels.get(rows, 0), panels.get(0, cols)), (None, None));
    let zeros = vec![0.0; (rows + 1) * cols];
    let mut other = Weights::new(MatRef::new(&zeros, rows + 1, cols).expect("a matrix")).expect("a small matrix");
    assert!(other.read_from(view).is_err());
}
