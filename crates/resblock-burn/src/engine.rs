//! Formulas, compiled: one engine for all layers of the same formula, with the memory that their calls reuse.

use crate::params::Spec;
use resblock::{Error, Formula, Functional, Keep, Record, Workspace};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// A network without weights. Layers of the same formulas share it, so that they share plans, which are made once, and scratch memory, which is then in cache.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) functional: Functional,
    pub(crate) formulas: Vec<Formula>,
    /// Its parameters, layer by layer.
    pub(crate) specs: Vec<Spec>,
    pub(crate) keep: Keep,
    /// As many as calls ran at once.
    workspaces: Mutex<Vec<Workspace>>,
    /// As many as graphs were alive at once.
    records: Mutex<Vec<Record>>,
}

/// Those that some layer has.
static ENGINES: Mutex<Vec<Weak<Engine>>> = Mutex::new(Vec::new());

/// A panic elsewhere leaves lists that are whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Engine {
    pub(crate) fn of(formulas: &[Formula], keep: Keep) -> Result<Arc<Self>, Error> {
        let mut engines = lock(&ENGINES);
        engines.retain(|engine| engine.strong_count() > 0);
        let same = |engine: &Arc<Engine>| engine.formulas == formulas && engine.keep == keep;
        if let Some(engine) = engines.iter().filter_map(Weak::upgrade).find(same) {
            return Ok(engine);
        }
        let functional = Functional::formulas(formulas)?.with_keep(keep)?;
        let specs = Spec::of_chain(formulas);
        let (workspaces, records) = Default::default();
        let engine = Arc::new(Self { functional, formulas: formulas.to_vec(), specs, keep, workspaces, records });
        engines.push(Arc::downgrade(&engine));
        Ok(engine)
    }

    /// Does `f` with a workspace that no other call has.
    pub(crate) fn with_workspace<R>(&self, f: impl FnOnce(&mut Workspace) -> R) -> R {
        let mut workspace = lock(&self.workspaces).pop().unwrap_or_default();
        let result = f(&mut workspace);
        lock(&self.workspaces).push(workspace);
        result
    }

    /// A record, to be given back when it is dropped.
    pub(crate) fn record(self: &Arc<Self>) -> Lent {
        let record = lock(&self.records).pop().unwrap_or_default();
        Lent { record, engine: Arc::clone(self) }
    }
}

/// A record of an engine.
#[derive(Debug)]
pub(crate) struct Lent {
    pub(crate) record: Record,
    engine: Arc<Engine>,
}

impl Drop for Lent {
    fn drop(&mut self) {
        lock(&self.engine.records).push(std::mem::take(&mut self.record));
    }
}
