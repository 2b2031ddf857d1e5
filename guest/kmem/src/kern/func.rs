//! Functions kept in the kernel's structures as the address of their code.
//!
//! **Invariant.** A word that is passed to [`FnWord::from_word`] was made by [`FnWord::to_word`] of
//! the same type in the running kernel, and was stored in a structure that only the kernel writes.

#![expect(unsafe_code, reason = "this module exists to hold it")]

use core::ptr;

/// An event handler's function in the system `S`: called with its own argument and with that of the
/// event (0 for vm_lowmem in 2008).
pub type EventFn<S> = fn(&S, arg: u64, flags: u64);

/// A function that does work of kind `T` in the system `S`, whose answer is discarded.
pub type WorkFn<S, T> = fn(&S, &T);

/// A function type that can be stored in memory as a word.
pub trait FnWord {
    /// The address of its code.
    fn to_word(self) -> u64;

    /// The function whose address is `word`.
    fn from_word(word: u64) -> Self;
}

macro_rules! fn_word {
    ($name:ident<$($of:ident),*>) => {
        impl<$($of),*> FnWord for $name<$($of),*> {
            fn to_word(self) -> u64 {
                (self as *const ()).expose_provenance() as u64
            }

            fn from_word(word: u64) -> Self {
                let code: *const () = ptr::with_exposed_provenance(crate::num::to_usize(word));
                // SAFETY: by the module's invariant `code` is the address of a function of this
                // very type.
                unsafe { core::mem::transmute::<*const (), Self>(code) }
            }
        }
    };
}

fn_word!(EventFn<S>);
fn_word!(WorkFn<S, T>);
