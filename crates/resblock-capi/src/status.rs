//! What functions return, and why.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Whether a function has done what it was asked for; nothing is written where it has not.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It has.
    Ok = 0,
    /// A pointer is NULL that must not be.
    NullPointer = 1,
    /// A matrix has the wrong shape.
    Shape = 2,
    /// A list has the wrong length.
    Length = 3,
    /// A setting is outside its range, or a form contradicts itself.
    Setting = 4,
    /// Sizes overflow the address range.
    Overflow = 5,
    /// The system gives no memory.
    Memory = 6,
    /// A record is not one that this function left for so many rows.
    Record = 7,
    /// The CPU has no such instruction set.
    Isa = 8,
    /// A file cannot be read or written, or is not of this network.
    File = 9,
    /// Something that is not foreseen: a defect of the library.
    Panic = 10,
    /// Any other error.
    Other = 11,
}

/// Why a call failed.
pub(crate) struct Failure {
    pub(crate) status: Status,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(status: Status, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }
}

impl From<resblock::Error> for Failure {
    fn from(error: resblock::Error) -> Self {
        use resblock::Error;
        let status = match error {
            Error::Shape { .. } => Status::Shape,
            Error::Length { .. } | Error::TooShort { .. } => Status::Length,
            Error::Setting { .. } | Error::Overlap { .. } | Error::Class { .. } | Error::Element { .. } => {
                Status::Setting
            }
            Error::Overflow { .. } => Status::Overflow,
            Error::Memory { .. } => Status::Memory,
            Error::Record { .. } => Status::Record,
            Error::Isa { .. } => Status::Isa,
            Error::Checkpoint(_) => Status::File,
            _ => Status::Other,
        };
        Self { status, message: error.to_string() }
    }
}

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
}

/// Does a call; no panic leaves it.
pub(crate) fn enter(call: impl FnOnce() -> Result<(), Failure>) -> Status {
    let outcome = catch_unwind(AssertUnwindSafe(call));
    let failure = match outcome {
        Ok(Ok(())) => return Status::Ok,
        Ok(Err(failure)) => failure,
        Err(_) => Failure::new(Status::Panic, "a panic, which is a defect of the library"),
    };
    let text = CString::new(failure.message.replace('\0', " ")).unwrap_or_default();
    let _ = LAST.try_with(|last| last.replace(text));
    failure.status
}

/// What the last call of this thread that failed says of it; an empty text, if there was none. It stays until the next one that fails. Never NULL.
#[unsafe(no_mangle)]
pub extern "C" fn resblock_last_error() -> *const c_char {
    LAST.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

/// The library's version: `0.1.0`, say.
#[unsafe(no_mangle)]
pub extern "C" fn resblock_version() -> *const c_char {
    const VERSION: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
        Ok(version) => version,
        Err(_) => c"",
    };
    VERSION.as_ptr()
}
