//! What optimisers keep for each parameter: moments, and how many steps it has taken.

use crate::context::Context;
use crate::error::Error;
use crate::gemm::buffers::zeros;
use crate::gemm::panels::{PANEL, PanelRef};
use crate::params::gradients::Gradients;
use crate::params::name::TensorName;
use crate::params::network::Parameters;
use crate::params::table::{Row, Table};
use crate::params::tensor::Spec;
use crate::team::Team;
use crate::team::pieces::{Strip, StripPiece, Strips};
use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};

/// Moments and step counts of every parameter.
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(unreachable_pub, reason = "part of what seals `SavedOptimizer`: nameable by nobody outside")]
pub struct State {
    /// None before they are made.
    table: Option<Table<Moments>>,
}

/// What is kept for one parameter.
#[derive(Debug, Clone, PartialEq)]
struct Moments {
    /// One after the other, each stored as the parameter is.
    values: Vec<f32>,
    /// Steps that it has taken: none while its gradient is declined.
    steps: u64,
}

/// One parameter, about to take a step.
pub(super) struct Slot {
    pub(super) name: TensorName,
    /// Which step of this parameter it is, from 1 on.
    pub(super) step: u64,
}

/// Some elements of a parameter: itself, its moments, its gradient, and what its step multiplies by.
pub(super) type Elements<'s, T> = StripPiece<'s, T>;

/// Elements that make another thread worth its while: some 10 microseconds of AdamW from caches.
const ELEMENTS_PER_THREAD: usize = 16 << 10;
/// Pieces for each thread, and the elements that each has at least.
const PIECES_PER_THREAD: usize = 4;
const LEAST_PIECE: usize = 2 << 10;

/// The memory of a list of strips, empty between steps.
pub(super) struct StripMemory<T>(Vec<Strip<'static, T>>);

impl<T> Default for StripMemory<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Clone for StripMemory<T> {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl<T> PartialEq for StripMemory<T> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl<T> fmt::Debug for StripMemory<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StripMemory")
    }
}

// It is empty: a step that panics leaves nothing in it.
impl<T> UnwindSafe for StripMemory<T> {}
impl<T> RefUnwindSafe for StripMemory<T> {}

/// Threads for so many elements, and elements of a piece.
fn cut(ctx: &Context, elements: usize) -> (usize, usize) {
    let threads = ctx.par().threads_for(elements / ELEMENTS_PER_THREAD);
    (threads, (elements / (threads * PIECES_PER_THREAD)).next_multiple_of(PANEL).max(LEAST_PIECE))
}

/// Does `work` with all strips, piece by piece, on so many threads.
fn share<T: Sync>(ctx: &Context, threads: usize, strips: &mut Strips<'_, T>, work: impl Fn(Elements<'_, T>) + Sync) {
    let mut crew = vec![(); threads]; // takes no memory
    Team::new(threads, ctx.linger()).each(strips.len(), strips.pieces(), &mut crew, |elements, ()| {
        if let Some(elements) = elements {
            work(elements);
        }
    });
}

/// Does `work` with all elements of one tensor, on the threads of the context if there are enough of them.
pub(super) fn in_pieces<T: Sync>(
    ctx: &Context,
    write: [&mut [f32]; 3],
    read: &[f32],
    what: T,
    work: impl Fn(Elements<'_, T>) + Sync,
) {
    let (threads, piece) = cut(ctx, read.len());
    if threads == 1 {
        return work(Elements { write, read, what: &what });
    }
    let mut strips = Strips::new(Vec::new(), piece);
    strips.push(write, read, what);
    share(ctx, threads, &mut strips, work);
}

impl State {
    /// `count` moments of zero for each parameter that is learned, and no steps.
    pub(crate) fn zeros(net: &dyn Parameters, count: usize) -> Result<Self, Error> {
        let len = |spec: Spec| if spec.name.role.is_learned() { spec.len().saturating_mul(count) } else { 0 };
        let table = Table::new(net, |spec| Ok(Moments { values: zeros(len(spec))?, steps: 0 }))?;
        Ok(Self { table: Some(table) })
    }

    /// New state of `count` moments, if there is none yet. Checks gradients and the state that there is.
    pub(super) fn made_for(
        &self,
        net: &dyn Parameters,
        grads: &Gradients,
        count: usize,
    ) -> Result<Option<Self>, Error> {
        grads.check("grads", net)?;
        match &self.table {
            Some(table) => grads.check_table("optimiser state", table).map(|()| None),
            None => Self::zeros(net, count).map(Some),
        }
    }

    fn rows(&self) -> &[Row<Moments>] {
        self.table.as_ref().map_or(&[], Table::rows)
    }

    fn rows_mut(&mut self) -> &mut [Row<Moments>] {
        self.table.as_mut().map_or(&mut [], Table::rows_mut)
    }

    /// Counts a step of every parameter with a gradient, and does `work` with all elements of it and with what `rule` makes of it, on the
    /// threads of the context if there is enough of it. State and gradients are those of `net`.
    pub(super) fn update<T: Sync>(
        &mut self,
        ctx: &Context,
        memory: &mut StripMemory<T>,
        net: &mut dyn Parameters,
        grads: &Gradients,
        mut rule: impl FnMut(Slot) -> T,
        work: impl Fn(Elements<'_, T>) + Sync,
    ) -> Result<(), Error> {
        let all = grads.values().flatten().map(|g| g.as_slice().len()).fold(0, usize::saturating_add);
        let (threads, piece) = cut(ctx, all);
        let mut strips = Strips::new(std::mem::take(&mut memory.0), piece);
        if threads > 1 {
            strips.reserve(self.rows().len())?;
        }
        let mut rows = self.rows_mut().iter_mut().zip(grads.values());
        net.visit_mut(&mut |parameter| {
            let Some((Row { spec, value: Moments { values, steps } }, Some(g))) = rows.next() else { return };
            *steps = steps.saturating_add(1);
            let what = rule(Slot { name: spec.name, step: *steps });
            let (p, (first, second)) = (parameter.into_slice(), values.split_at_mut(spec.len()));
            if threads > 1 {
                strips.push([p, first, second], g.as_slice(), what);
            } else {
                // Without a list, which takes as long as a step of a few weights.
                work(Elements { write: [p, first, second], read: g.as_slice(), what: &what });
            }
        });
        if threads > 1 {
            share(ctx, threads, &mut strips, work);
        }
        memory.0 = strips.into_memory();
        Ok(())
    }

    /// Whether `holds(g, m, v)` for all elements, without padding, of every parameter with a gradient, up to 16 at a time, where there are two
    /// moments.
    pub(super) fn all_lines(&self, grads: &Gradients, mut holds: impl FnMut(&[f32], &[f32], &[f32]) -> bool) -> bool {
        self.rows().iter().zip(grads.values()).all(|(Row { spec, value }, g)| {
            g.is_none_or(|g| {
                let (m, v) = value.values.split_at(spec.len());
                let [m, v] = [m, v].map(|moment| PanelRef::new(moment, spec.rows, spec.cols).lines());
                g.view().lines().zip(m.zip(v)).all(|(g, (m, v))| holds(g, m, v))
            })
        })
    }
}

#[cfg(feature = "safetensors")]
mod saved {
    use super::{Moments, State};
    use crate::error::Error;
    use crate::gemm::panels::{PanelMut, PanelRef};
    use crate::params::network::Parameters;
    use crate::params::table::Row;
    use crate::params::tensor::{TensorMut, TensorRef};

    impl State {
        /// That these moments belong to a network with the tensors of `net`, or have not been made yet.
        pub(crate) fn check(&self, net: &dyn Parameters) -> Result<(), Error> {
            self.table.as_ref().map_or(Ok(()), |table| table.check("optimiser state", net))
        }

        /// Moment `at` of parameter `index`. None before they are made, and of what is not learned.
        pub(crate) fn moment(&self, index: usize, at: usize) -> Option<TensorRef<'_>> {
            let Row { spec, value } = self.rows().get(index)?;
            let values = value.values.get(at * spec.len()..)?.get(..spec.len())?;
            Some(TensorRef::new(spec.name, PanelRef::new(values, spec.rows, spec.cols)))
        }

        /// Steps that a parameter has taken.
        pub(crate) fn steps(&self, index: usize) -> u64 {
            self.rows().get(index).map_or(0, |row| row.value.steps)
        }

        /// Every moment with its number, and the count of steps, of each parameter in turn.
        pub(crate) fn parts_mut(&mut self) -> impl Iterator<Item = (&mut u64, impl Iterator<Item = TensorMut<'_>>)> {
            self.rows_mut().iter_mut().map(|Row { spec, value: Moments { values, steps } }| {
                let (name, rows, cols) = (spec.name, spec.rows, spec.cols);
                let moments = values.chunks_exact_mut(spec.len().max(1));
                (steps, moments.map(move |moment| TensorMut::new(name, PanelMut::new(moment, rows, cols))))
            })
        }
    }
}
