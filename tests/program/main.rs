//! The program as its users have it: the real binary, its own command line, real models, tiny.

mod architecture;
mod asynchronous;
mod bad_input;
mod control;
mod correction;
mod decoding;
mod determinism;
mod dpo;
mod environment;
mod evaluate;
mod import;
mod judge;
mod limit;
mod lora;
mod memory;
mod odd_input;
mod rough_use;
mod stages;
mod telemetry;
mod workbench;
