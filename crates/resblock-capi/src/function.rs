//! Compiled formulas.

use crate::form::Formula;
use crate::memory::{Parameter, exclusive, free, give, list, list_mut, shared};
use crate::status::{Failure, Status, enter};
use resblock::{AffineRef, Block, Functional, Init, Keep, Layer, Linear, NormLayer, ParamsRef, Role, TensorRef};
use std::ffi::{CString, c_char};

/// One formula, or several one after the other, compiled: a function of x and of parameters, which the caller keeps.
pub struct Function {
    pub(crate) functional: Functional,
    formulas: Vec<resblock::Formula>,
    pub(crate) tensors: Vec<Described>,
}

/// A parameter.
pub(crate) struct Described {
    name: CString,
    pub(crate) role: Role,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
}

/// The matrix of an affine map, (outputs, inputs).
pub const RESBLOCK_ROLE_WEIGHT: u32 = 0;
/// What an affine map adds.
pub const RESBLOCK_ROLE_BIAS: u32 = 1;
/// γ of a norm.
pub const RESBLOCK_ROLE_GAIN: u32 = 2;
/// β of a norm.
pub const RESBLOCK_ROLE_SHIFT: u32 = 3;
/// What a branch is multiplied by.
pub const RESBLOCK_ROLE_SCALE: u32 = 4;
/// The running average of a BatchNorm's mean, which has no gradient.
pub const RESBLOCK_ROLE_RUNNING_MEAN: u32 = 5;
/// The running average of a BatchNorm's variance, which has no gradient.
pub const RESBLOCK_ROLE_RUNNING_VARIANCE: u32 = 6;

/// What a parameter is.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Tensor {
    /// Its name, as long as the function is there: `first.weight`, say.
    pub name: *const c_char,
    /// RESBLOCK_ROLE_WEIGHT, ...
    pub role: u32,
    /// Outputs of weights; 1 of all else.
    pub rows: usize,
    /// Inputs of weights; the length of all else.
    pub cols: usize,
}

/// Affine maps and vectors of a call.
pub(crate) type Params<'a> = (Vec<AffineRef<'a>>, Vec<&'a [f32]>);

impl Function {
    fn new(formulas: Vec<resblock::Formula>, keep: Keep) -> Result<Self, Failure> {
        let functional = Functional::formulas(&formulas)?.with_keep(keep)?;
        let mut tensors = Vec::new();
        for (layer, formula) in formulas.iter().enumerate() {
            for (name, (rows, cols)) in formula.tensors() {
                let place = resblock::Place { layer: Some(layer), ..name.place };
                let role = name.role;
                let name = if formulas.len() == 1 { name } else { place.tensor(role) };
                let name = CString::new(name.to_string()).unwrap_or_default();
                tensors.push(Described { name, role, rows, cols });
            }
        }
        Ok(Self { functional, formulas, tensors })
    }

    /// From C's formulas.
    ///
    /// # Safety
    /// The contract of `memory`.
    pub(crate) unsafe fn read(formulas: *const Formula, count: usize, keep: Keep) -> Result<Self, Failure> {
        // SAFETY: by the caller.
        let formulas = unsafe { list("formulas", formulas, count)? };
        Self::new(formulas.iter().map(Formula::read).collect::<Result<_, _>>()?, keep)
    }

    pub(crate) fn check_count(&self, operand: &str, count: usize) -> Result<(), Failure> {
        if count == self.tensors.len() {
            return Ok(());
        }
        let message = format!("{operand}: expected length {}, found {count}", self.tensors.len());
        Err(Failure::new(Status::Length, message))
    }

    /// Parameters as calls take them.
    ///
    /// # Safety
    /// The contract of `memory`.
    pub(crate) unsafe fn params<'a>(&self, params: *const Parameter, count: usize) -> Result<Params<'a>, Failure> {
        self.check_count("params", count)?;
        // SAFETY: by the caller.
        let params = unsafe { list("params", params, count)? };
        let (mut affines, mut vectors): Params<'a> = Default::default();
        for (param, tensor) in params.iter().zip(&self.tensors) {
            let name = tensor.name.to_str().unwrap_or("params");
            // SAFETY: by the caller.
            unsafe {
                match tensor.role {
                    Role::Weight => {
                        let weights = param.matrix((tensor.rows, tensor.cols)).view(name)?;
                        affines.push(AffineRef { weights, bias: None });
                    }
                    Role::Bias => {
                        let bias = list(name, param.data, tensor.cols)?;
                        if let Some(map) = affines.last_mut() {
                            map.bias = Some(bias);
                        }
                    }
                    _ => vectors.push(list(name, param.data, tensor.cols)?),
                }
            }
        }
        Ok((affines, vectors))
    }

    /// A layer with zeros for parameters.
    pub(crate) fn zeros(&self) -> Result<resblock::Sequence, Failure> {
        let most = self.tensors.iter().map(|tensor| tensor.rows * tensor.cols).max().unwrap_or(0);
        let zeros = vec![0.0; most];
        let (mut affines, mut vectors): Params<'_> = Default::default();
        for tensor in &self.tensors {
            let values = &zeros[..tensor.rows * tensor.cols];
            match tensor.role {
                Role::Weight => {
                    let weights = resblock::MatRef::new(values, tensor.rows, tensor.cols)?;
                    affines.push(AffineRef { weights, bias: None });
                }
                Role::Bias => {
                    if let Some(map) = affines.last_mut() {
                        map.bias = Some(values);
                    }
                }
                _ => vectors.push(values),
            }
        }
        Ok(self.functional.pack(ParamsRef { affines: &affines, vectors: &vectors })?)
    }
}

/// Compiles formulas, one after the other. `keep_inputs`: records hold what enters each layer alone, and backward computes the rest again: the same bits,
/// less memory, more time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn resblock_function_new(
    formulas: *const Formula,
    count: usize,
    keep_inputs: bool,
    out: *mut *mut Function,
) -> Status {
    let keep = if keep_inputs { Keep::Inputs } else { Keep::All };
    // SAFETY: `memory`.
    enter(|| unsafe { give(out, || Function::read(formulas, count, keep)) })
}

/// Frees it. NULL is let be.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn resblock_function_free(function: *mut Function) {
    // SAFETY: `memory`.
    unsafe { free(function) }
}

/// Features of x, of y, and how many parameters there are: any of the three may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn resblock_function_sizes(
    function: *const Function,
    inputs: *mut usize,
    outputs: *mut usize,
    tensors: *mut usize,
) -> Status {
    enter(|| {
        // SAFETY: `memory`.
        unsafe {
            let function = shared("function", function)?;
            let sizes = [function.functional.inputs(), function.functional.outputs(), function.tensors.len()];
            for (to, size) in [inputs, outputs, tensors].into_iter().zip(sizes) {
                if let Some(to) = to.as_mut() {
                    *to = size;
                }
            }
        }
        Ok(())
    })
}

/// Parameter `index`, in the order of calls.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn resblock_function_tensor(
    function: *const Function,
    index: usize,
    tensor: *mut Tensor,
) -> Status {
    enter(|| {
        // SAFETY: `memory`.
        let (function, out) = unsafe { (shared("function", function)?, exclusive("tensor", tensor)?) };
        let Some(found) = function.tensors.get(index) else {
            return Err(Failure::new(
                Status::Length,
                format!("index: there are {} parameters", function.tensors.len()),
            ));
        };
        let role = match found.role {
            Role::Weight => RESBLOCK_ROLE_WEIGHT,
            Role::Bias => RESBLOCK_ROLE_BIAS,
            Role::Gain => RESBLOCK_ROLE_GAIN,
            Role::Shift => RESBLOCK_ROLE_SHIFT,
            Role::RunningMean => RESBLOCK_ROLE_RUNNING_MEAN,
            Role::RunningVariance => RESBLOCK_ROLE_RUNNING_VARIANCE,
            _ => RESBLOCK_ROLE_SCALE,
        };
        *out = Tensor { name: found.name.as_ptr(), role, rows: found.rows, cols: found.cols };
        Ok(())
    })
}

/// Floats of the record of so many rows, whatever the threads.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn resblock_record_len(function: *const Function, rows: usize, len: *mut usize) -> Status {
    enter(|| {
        // SAFETY: `memory`.
        let (function, len) = unsafe { (shared("function", function)?, exclusive("len", len)?) };
        *len = function.functional.record_len(rows)?;
        Ok(())
    })
}

/// New parameters, one list for each, row-major: weights by He et al. 2015, times the form's init_scales; the rest as each role begins.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn resblock_init(
    function: *const Function,
    seed: u64,
    params: *const *mut f32,
    count: usize,
) -> Status {
    enter(|| {
        // SAFETY: `memory`.
        let (function, params) = unsafe { (shared("function", function)?, list("params", params, count)?) };
        function.check_count("params", count)?;
        if params.iter().any(|param| param.is_null()) {
            return Err(crate::memory::null("params"));
        }
        let mut init = Init::he(seed);
        let mut rest = function.tensors.iter().zip(params);
        for formula in &function.formulas {
            let new = Fresh::new(formula, &mut init)?;
            for (name, _) in formula.tensors() {
                let Some((tensor, &to)) = rest.next() else { break };
                // SAFETY: `memory`.
                let to = unsafe { list_mut("params", to, tensor.rows * tensor.cols)? };
                new.copy(name, to);
            }
        }
        Ok(())
    })
}

/// A layer of new parameters.
enum Fresh {
    Block(Block),
    Linear(Linear),
    Norm(NormLayer),
}

impl Fresh {
    fn new(formula: &resblock::Formula, init: &mut Init) -> Result<Self, Failure> {
        Ok(match *formula {
            resblock::Formula::Block(form) => Self::Block(Block::with_form(&form, init)?),
            resblock::Formula::Linear { inputs, outputs, activation, .. } => {
                Self::Linear(Linear::with_init(inputs, outputs, activation, init)?)
            }
            resblock::Formula::Norm { width, norm, activation } => Self::Norm(NormLayer::new(width, norm, activation)?),
            _ => return Err(Failure::new(Status::Other, "a formula that is not known")),
        })
    }

    fn copy(&self, name: resblock::TensorName, to: &mut [f32]) {
        fn from<'a>(mut all: impl Iterator<Item = TensorRef<'a>>, name: resblock::TensorName, to: &mut [f32]) {
            if let Some(found) = all.find(|tensor| tensor.name() == name) {
                to.iter_mut().zip(found.iter()).for_each(|(to, value)| *to = value);
            }
        }
        match self {
            Self::Block(layer) => from(layer.parameters(), name, to),
            Self::Linear(layer) => from(layer.parameters(), name, to),
            Self::Norm(layer) => from(layer.parameters(), name, to),
        }
    }
}
