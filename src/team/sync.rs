//! What the door is built of: the standard library's atomics, or those of `loom`, under which tests run it through every order of events.

#[cfg(not(all(test, loom)))]
mod real {
    pub(crate) use crossbeam_utils::CachePadded as Apart;
    pub(crate) use std::sync::Mutex;
    pub(crate) use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, fence};

    /// Memory whose accesses the door orders.
    #[derive(Debug)]
    pub(crate) struct Guarded<T>(std::cell::UnsafeCell<T>);

    impl<T> Guarded<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(std::cell::UnsafeCell::new(value))
        }
        #[inline(always)]
        pub(crate) fn with<R>(&self, f: impl FnOnce(*const T) -> R) -> R {
            f(self.0.get())
        }
        #[inline(always)]
        pub(crate) fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
            f(self.0.get())
        }
    }

    /// Spins after which a wait gives its core to others each time: some 50 microseconds.
    const SPINS: u32 = 1 << 11;

    /// One turn of waiting for another thread.
    #[inline(always)]
    pub(crate) fn pause(turn: &mut u32) {
        if *turn < SPINS {
            *turn += 1;
            std::hint::spin_loop();
        } else {
            std::thread::yield_now();
        }
    }
}
#[cfg(not(all(test, loom)))]
pub(crate) use real::*;

#[cfg(all(test, loom))]
mod model {
    pub(crate) use loom::cell::UnsafeCell as Guarded;
    pub(crate) use loom::sync::Mutex;
    pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, fence};

    /// As `CachePadded`: what lies how far from what is nothing to a model.
    #[derive(Debug)]
    pub(crate) struct Apart<T>(T);
    impl<T> Apart<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(value)
        }
    }
    impl<T> std::ops::Deref for Apart<T> {
        type Target = T;
        fn deref(&self) -> &T {
            &self.0
        }
    }

    pub(crate) fn pause(_: &mut u32) {
        loom::thread::yield_now();
    }
}
#[cfg(all(test, loom))]
pub(crate) use model::*;
