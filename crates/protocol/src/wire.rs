//! The messages of `proto/rollcall.proto`, and what they mean to code.

#![expect(missing_docs, reason = "generated: the .proto documents them")]

include!(concat!(env!("OUT_DIR"), "/rollcall.v1.rs"));
