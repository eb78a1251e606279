//! The gradients of a network's parameters.

use super::name::TensorName;
use super::network::Parameters;
use super::table::{Row, Table};
use super::tensor::{Spec, TensorMut, TensorRef};
use crate::context::Context;
use crate::error::Error;
use crate::gemm::panel_mat::PanelMat;
use crate::mat::MatRef;
use crate::team::Team;
use crate::team::pieces::Chunks;

/// Values that make another thread worth its while, where one is read, changed and written in a nanosecond or less.
pub(super) const VALUES_PER_THREAD: usize = 32 << 10;

/// The parameter gradients of a network: made once, written by every backward pass.
#[derive(Debug, Clone)]
pub struct Gradients {
    /// Stored as the parameters are: an optimiser is elementwise on both. What was declined or is not learned is None.
    table: Table<Option<PanelMat>>,
}

impl Gradients {
    /// Zero gradients for every parameter of a network that is learned.
    pub(crate) fn of(net: &dyn Parameters) -> Result<Self, Error> {
        let zeros = |spec: Spec| spec.name.role.is_learned().then(|| PanelMat::zeros(spec.rows, spec.cols)).transpose();
        Ok(Self { table: Table::new(net, zeros)? })
    }

    /// Declines the gradients of all tensors that `which` says: backward no longer computes them, optimisers leave those parameters as
    /// they are. Returns how many of them were not declined before.
    ///
    /// ```
    /// # use resblock::*;
    /// # fn main() -> Result<(), Error> {
    /// # let stack = Stack::new(&StackConfig::default())?;
    /// let mut grads = Gradients::new(&stack)?;
    /// assert_eq!(grads.decline(|tensor| tensor == Part::Input.weight()), 1);
    /// assert_eq!(grads.decline(|tensor| tensor.role == Role::Bias), 22);
    /// assert_eq!(grads.decline(|tensor| tensor.place.block < Some(3)), 7); // the input's, and two of each of three blocks
    /// # Ok(())
    /// # }
    /// ```
    pub fn decline(&mut self, which: impl Fn(TensorName) -> bool) -> usize {
        let rows = self.table.rows_mut().iter_mut();
        rows.filter_map(|row| which(row.spec.name).then(|| row.value.take()).flatten()).count()
    }

    /// Every gradient that is computed, named as its parameter.
    pub fn iter(&self) -> impl Iterator<Item = TensorRef<'_>> {
        let values = self.table.rows().iter().map(|Row { spec, value }| Some((spec.name, value.as_ref()?)));
        values.flatten().map(|(name, values)| TensorRef::new(name, values.view()))
    }

    /// As [`Gradients::iter`], to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = TensorMut<'_>> {
        let values = self.table.rows_mut().iter_mut().map(|Row { spec, value }| Some((spec.name, value.as_mut()?)));
        values.flatten().map(|(name, values)| TensorMut::new(name, values.view_mut()))
    }

    /// Sets a gradient, (outputs, inputs) of weights or (1, outputs) of a bias: where an accumulating backward goes on from. False if it
    /// was declined or there is no such tensor.
    ///
    /// # Errors
    /// [`Error::TensorShape`] if the shape differs.
    pub fn set(&mut self, name: TensorName, values: MatRef<'_>) -> Result<bool, Error> {
        let found = self.iter_mut().find(|gradient| gradient.name() == name);
        found.map_or(Ok(false), |mut gradient| gradient.read_from(values).map(|()| true))
    }

    /// Multiplies every gradient by `factor`, rounding it once more.
    ///
    /// Not for the mean over micro-batches: pieces of 3 and 2 rows would weigh the same. Give the loss the divisor of the whole batch
    /// ([`crate::Divisor`]), accumulate, and there is nothing to scale: the bits are those of the batch.
    pub fn scale(&mut self, ctx: &Context, factor: f32) {
        self.change(ctx, |piece| piece.iter_mut().for_each(|v| *v *= factor));
    }

    /// Does `f` with all values, some at a time, on the threads of the context if there are many.
    pub(super) fn change(&mut self, ctx: &Context, f: impl Fn(&mut [f32]) + Sync) {
        let all = self.values().flatten().map(|g| g.as_slice().len()).fold(0, usize::saturating_add);
        let threads = ctx.par().threads_for(all / VALUES_PER_THREAD);
        let (mut team, mut crew) = (Team::new(threads, ctx.linger()), vec![(); threads]); // which takes no memory
        for tensor in self.iter_mut() {
            let values = tensor.into_slice();
            // A tensor that is not worth two threads is not worth a phase.
            let size =
                if values.len() < 2 * VALUES_PER_THREAD { values.len() } else { values.len().div_ceil(4 * threads) };
            let count = values.len().div_ceil(size.max(1));
            team.each(count, Chunks::new(values, size), &mut crew, |piece, ()| f(piece));
        }
    }

    /// That these gradients belong to a network of `net`'s shape.
    pub(crate) fn check(&self, operand: &'static str, net: &dyn Parameters) -> Result<(), Error> {
        self.table.check(operand, net)
    }

    /// That `other` is a table of the same tensors.
    pub(crate) fn check_table<T>(&self, operand: &'static str, other: &Table<T>) -> Result<(), Error> {
        other.check_same(operand, &self.table)
    }

    /// The gradient of each tensor, in the order of the parameters, as stored; None where it was declined.
    pub(crate) fn values(&self) -> impl Iterator<Item = Option<&PanelMat>> {
        self.table.rows().iter().map(|row| row.value.as_ref())
    }

    /// Each gradient, as stored, in the order of the parameters; None where it was declined.
    pub(crate) fn rows_mut(&mut self) -> impl Iterator<Item = (Spec, Option<&mut [f32]>)> {
        self.table.rows_mut().iter_mut().map(|Row { spec, value }| (*spec, value.as_mut().map(PanelMat::as_mut_slice)))
    }
}
