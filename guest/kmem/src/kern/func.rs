//! Functions kept in the kernel's structures as the address of their code.
//!
//! **Invariant.** A word that [`FnWord::from_word`] is given was made by [`FnWord::to_word`] of the
//! same type in the running kernel, and has lain in a structure that nobody but the kernel writes
//! to.

#![expect(unsafe_code, reason = "this module exists to hold it")]

use core::ptr;

use vmkern_abi::control::Op;

use super::eventhandler::EventFn;
use crate::vm::Vm;

/// A function that performs an operation of the control ring, and has nobody to give the answer to.
pub type OpFn<M> = fn(&Vm<M>, &Op);

/// A type of functions that can lie in memory as a word.
pub trait FnWord {
    /// The address of its code.
    fn to_word(self) -> u64;

    /// The function whose address is `word`.
    fn from_word(word: u64) -> Self;
}

macro_rules! fn_word {
    ($($name:ident),*) => {$(
        impl<M: crate::machine::Machine> FnWord for $name<M> {
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
    )*};
}

fn_word!(EventFn, OpFn);
