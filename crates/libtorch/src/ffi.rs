//! The border to `shim.cpp`: the only `unsafe` code of the workspace.
//!
//! Each shim function returns null, or a message to be freed with `saddle_string_free`; a string handed out is freed in
//! the same way. On a message the out-parameters are untouched. No function keeps a pointer that it is given.
#![expect(unsafe_code, reason = "the border to C++")]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};

use tch::Tensor;

use crate::LibtorchError;

unsafe extern "C" {
    fn saddle_string_free(string: *mut c_char);
    fn saddle_version(version: *mut *mut c_char) -> *mut c_char;
    fn saddle_cpu_capability(capability: *mut *mut c_char) -> *mut c_char;
    fn saddle_libtorch_path(path: *mut *mut c_char) -> *mut c_char;
    fn saddle_load_library(path: *const c_char) -> *mut c_char;
    fn saddle_cuda_devices(registered: *mut bool, devices: *mut c_int) -> *mut c_char;
    fn saddle_set_threads(threads: c_int) -> *mut c_char;
    fn saddle_threads(threads: *mut c_int) -> *mut c_char;
    fn saddle_use_deterministic_algorithms(enabled: bool) -> *mut c_char;
    fn saddle_enter_stream(device: c_int) -> *mut c_char;
    fn saddle_synchronize_stream(device: c_int) -> *mut c_char;
    fn saddle_synchronize_device(device: c_int) -> *mut c_char;
    fn saddle_products(
        input: *const c_void,
        weights: *const *const c_void,
        count: i64,
        factors: c_int,
        products: *mut *mut c_void,
    ) -> *mut c_char;
    fn saddle_add_gradients(
        loss: *const c_void,
        leaves: *const *const c_void,
        sums: *const *const c_void,
        count: i64,
    ) -> *mut c_char;
    fn saddle_panel() -> i64;
    fn saddle_bf16_units() -> bool;
    fn saddle_linear(
        products: *const Product,
        count: i64,
        input: *const f32,
        rows: i64,
        depth: i64,
        bf16: bool,
    ) -> *mut c_char;
    fn saddle_forward(decoder: *const Decoder, tokens: *const Tokens) -> *mut c_char;
    fn saddle_rms_norm(input: *const c_void, weight: *const c_void, epsilon: f64, out: *mut *mut c_void)
    -> *mut c_char;
    fn saddle_swiglu(gate: *const c_void, up: *const c_void, out: *mut *mut c_void) -> *mut c_char;
    fn saddle_sequence_attention(
        query: *const c_void,
        key: *const c_void,
        value: *const c_void,
        starts: *const c_void,
        cosine: *const c_void,
        sine: *const c_void,
        head_size: i64,
        window: i64,
        out: *mut *mut c_void,
    ) -> *mut c_char;
    fn saddle_log_probs(
        logits: *const c_void,
        targets: *const c_void,
        temperature: f64,
        log_probs: *mut *mut c_void,
        entropies: *mut *mut c_void,
    ) -> *mut c_char;
    fn saddle_choose(
        logits: *const f32,
        rows: i64,
        width: i64,
        temperature: f64,
        uniforms: *const f64,
        tokens: *mut i64,
        log_probs: *mut f32,
    ) -> *mut c_char;
    fn saddle_adamw(
        step: *const Step,
        weights: *mut f32,
        gradient: *mut f32,
        means: *mut f32,
        squares: *mut f32,
        count: i64,
    ) -> *mut c_char;
}

/// `Step` of `kernels.h`.
#[repr(C)]
pub(crate) struct Step {
    pub(crate) scale: f32,
    pub(crate) beta1: f32,
    pub(crate) beta2: f32,
    pub(crate) mean_correction: f32,
    pub(crate) square_correction: f32,
    pub(crate) epsilon: f32,
    pub(crate) rate: f32,
    pub(crate) decay: f32,
}

/// `Product` of `kernels.h`.
#[repr(C)]
pub(crate) struct Product {
    pub(crate) weight: *const c_void,
    pub(crate) bias: *const f32,
    pub(crate) out: *mut f32,
    pub(crate) outputs: i64,
}

/// `Matrix` of `decoder.h`.
#[repr(C)]
pub(crate) struct Matrix {
    pub(crate) weight: *const c_void,
    pub(crate) bias: *const f32,
    pub(crate) outputs: i64,
}

/// `Norm` of `decoder.h`.
#[repr(C)]
pub(crate) struct Norm {
    pub(crate) weight: *const f32,
    pub(crate) bias: *const f32,
    pub(crate) epsilon: f64,
}

/// `Block` of `decoder.h`.
#[repr(C)]
pub(crate) struct Block {
    pub(crate) attention_norm: Norm,
    pub(crate) query: Matrix,
    pub(crate) key: Matrix,
    pub(crate) value: Matrix,
    pub(crate) query_norm: Norm,
    pub(crate) key_norm: Norm,
    pub(crate) output: Matrix,
    pub(crate) feed_forward_norm: Norm,
    pub(crate) gate: Matrix,
    pub(crate) up: Matrix,
    pub(crate) down: Matrix,
    pub(crate) keys: *mut c_void,
    pub(crate) values: *mut c_void,
}

/// `Decoder` of `decoder.h`.
#[repr(C)]
pub(crate) struct Decoder {
    pub(crate) blocks: *const Block,
    pub(crate) count: i64,
    pub(crate) norm: Norm,
    pub(crate) cosine: *const f32,
    pub(crate) sine: *const f32,
    pub(crate) width: i64,
    pub(crate) inner: i64,
    pub(crate) heads: i64,
    pub(crate) kv_heads: i64,
    pub(crate) head_size: i64,
    pub(crate) capacity: i64,
    pub(crate) window: i64,
    pub(crate) bf16_weights: bool,
    pub(crate) bf16_cache: bool,
}

/// `Tokens` of `decoder.h`.
#[repr(C)]
pub(crate) struct Tokens {
    pub(crate) hidden: *mut f32,
    pub(crate) rows: *const i64,
    pub(crate) positions: *const i64,
    pub(crate) count: i64,
    pub(crate) longest: i64,
    pub(crate) wanted: *const i64,
    pub(crate) wanted_count: i64,
    pub(crate) out: *mut f32,
}

/// Takes over a string from the shim; `None` for null.
fn take(string: *mut c_char) -> Option<String> {
    if string.is_null() {
        return None;
    }
    // SAFETY: not null, so it is a NUL-terminated string from the shim that this function alone owns.
    let owned = unsafe { CStr::from_ptr(string) }.to_string_lossy().into_owned();
    // SAFETY: allocated by the shim, read above for the last time.
    unsafe { saddle_string_free(string) };
    Some(owned)
}

fn checked(operation: &'static str, message: *mut c_char) -> Result<(), LibtorchError> {
    match take(message) {
        None => Ok(()),
        Some(message) => Err(LibtorchError::Exception { operation, message }),
    }
}

fn string(
    operation: &'static str,
    call: unsafe extern "C" fn(*mut *mut c_char) -> *mut c_char,
) -> Result<String, LibtorchError> {
    let mut value = std::ptr::null_mut();
    // SAFETY: `value` is a valid place to write a pointer to for the length of the call.
    checked(operation, unsafe { call(&mut value) })?;
    Ok(take(value).unwrap_or_default())
}

pub(crate) fn version() -> Result<String, LibtorchError> {
    string("reading the version", saddle_version)
}

pub(crate) fn cpu_capability() -> Result<String, LibtorchError> {
    string("reading the CPU capability", saddle_cpu_capability)
}

/// Where the dynamic loader found `libtorch_cpu.so`.
pub(crate) fn libtorch_path() -> Result<PathBuf, LibtorchError> {
    string("locating libtorch", saddle_libtorch_path).map(PathBuf::from)
}

/// Loads a shared library for the rest of the process, its symbols visible to all; the loader's own words on failure.
pub(crate) fn load_library(path: &Path) -> Result<(), String> {
    let path = CString::new(path.as_os_str().as_encoded_bytes()).map_err(|error| error.to_string())?;
    // SAFETY: a NUL-terminated string that outlives the call. The initialisers that run are libtorch's own.
    take(unsafe { saddle_load_library(path.as_ptr()) }).map_or(Ok(()), Err)
}

/// Whether libtorch took a CUDA backend into use, and how many devices it shows. The first call decides for ever.
pub(crate) fn cuda_devices() -> Result<(bool, usize), LibtorchError> {
    let (mut registered, mut devices) = (false, 0);
    // SAFETY: both are valid places to write to for the length of the call.
    checked("counting CUDA devices", unsafe { saddle_cuda_devices(&mut registered, &mut devices) })?;
    Ok((registered, usize::try_from(devices).unwrap_or(0)))
}

pub(crate) fn set_threads(threads: c_int) -> Result<(), LibtorchError> {
    // SAFETY: takes a plain number.
    checked("setting the thread count", unsafe { saddle_set_threads(threads) })
}

pub(crate) fn threads() -> Result<usize, LibtorchError> {
    let mut threads = 0;
    // SAFETY: `threads` is a valid place to write to for the length of the call.
    checked("reading the thread count", unsafe { saddle_threads(&mut threads) })?;
    Ok(usize::try_from(threads).unwrap_or(0))
}

pub(crate) fn use_deterministic_algorithms(enabled: bool) -> Result<(), LibtorchError> {
    // SAFETY: takes a plain flag.
    checked("choosing deterministic algorithms", unsafe { saddle_use_deterministic_algorithms(enabled) })
}

/// Gives this thread a stream of its own on a CUDA device.
pub(crate) fn enter_stream(device: c_int) -> Result<(), LibtorchError> {
    // SAFETY: takes a plain number.
    checked("entering a stream", unsafe { saddle_enter_stream(device) })
}

/// Waits for what this thread's stream on a CUDA device was given to do.
pub(crate) fn synchronize_stream(device: c_int) -> Result<(), LibtorchError> {
    // SAFETY: takes a plain number.
    checked("waiting for a stream", unsafe { saddle_synchronize_stream(device) })
}

/// Waits for what every stream of a CUDA device was given to do.
pub(crate) fn synchronize_device(device: c_int) -> Result<(), LibtorchError> {
    // SAFETY: takes a plain number.
    checked("waiting for a device", unsafe { saddle_synchronize_device(device) })
}

/// What a call gives that hands out a tensor.
///
/// `call` must write an `at::Tensor` made by `new`, which nobody else owns, unless it gives a message.
fn tensor(
    operation: &'static str,
    call: impl FnOnce(&mut *mut c_void) -> *mut c_char,
) -> Result<Tensor, LibtorchError> {
    let mut made = std::ptr::null_mut();
    checked(operation, call(&mut made))?;
    // SAFETY: without a message it is an `at::Tensor` as tch has them.
    Ok(unsafe { Tensor::from_ptr(made.cast()) })
}

/// The `at::Tensor` behind a tensor, which must outlive the use of the pointer.
fn behind(tensor: &Tensor) -> *const c_void {
    tensor.as_ptr().cast()
}

/// `saddle::products` of `products.h`, which checks its operands.
pub(crate) fn products(input: &Tensor, weights: &[&Tensor], factors: c_int) -> Result<Vec<Tensor>, LibtorchError> {
    let weights: Vec<_> = weights.iter().map(|weight| behind(weight)).collect();
    let mut made = vec![std::ptr::null_mut(); weights.len()];
    let (count, out) = (weights.len() as i64, made.as_mut_ptr());
    // SAFETY: the tensors live as long as the call, and there is a place to write to for each weight.
    checked("a product", unsafe { saddle_products(behind(input), weights.as_ptr(), count, factors, out) })?;
    // SAFETY: without a message each is an `at::Tensor` as tch has them.
    Ok(made.into_iter().map(|made| unsafe { Tensor::from_ptr(made.cast()) }).collect())
}

/// `saddle::add_gradients` of `products.h`, of as many `leaves` as `sums`.
pub(crate) fn add_gradients(loss: &Tensor, leaves: &[Tensor], sums: &[Tensor]) -> Result<(), LibtorchError> {
    let all = |tensors: &[Tensor]| tensors.iter().map(behind).collect::<Vec<_>>();
    let (leaves, sums) = (all(leaves), all(sums));
    // SAFETY: the tensors live as long as the call; there is a sum for each leaf.
    checked("a backward pass", unsafe {
        saddle_add_gradients(behind(loss), leaves.as_ptr(), sums.as_ptr(), leaves.len() as i64)
    })
}

/// `saddle::rms_norm` of `layers.h`, which checks its operands.
pub(crate) fn rms_norm(input: &Tensor, weight: &Tensor, epsilon: f64) -> Result<Tensor, LibtorchError> {
    // SAFETY: as in `products`.
    tensor("a norm", |out| unsafe { saddle_rms_norm(behind(input), behind(weight), epsilon, out) })
}

/// `saddle::swiglu` of `layers.h`, which checks its operands.
pub(crate) fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor, LibtorchError> {
    // SAFETY: as in `products`.
    tensor("a gate", |out| unsafe { saddle_swiglu(behind(gate), behind(up), out) })
}

/// `saddle::sequence_attention` of `layers.h`, which checks its operands.
pub(crate) fn sequence_attention(
    (query, key, value): (&Tensor, &Tensor, &Tensor),
    starts: &Tensor,
    rotary: Option<(&Tensor, &Tensor)>,
    head_size: i64,
    window: i64,
) -> Result<Tensor, LibtorchError> {
    let (query, key, value, starts) = (behind(query), behind(key), behind(value), behind(starts));
    let (cosine, sine) =
        rotary.map_or((std::ptr::null(), std::ptr::null()), |(cosine, sine)| (behind(cosine), behind(sine)));
    // SAFETY: as in `products`; the tables may be null.
    tensor("attention", |out| unsafe {
        saddle_sequence_attention(query, key, value, starts, cosine, sine, head_size, window, out)
    })
}

/// `saddle::log_probs` of `layers.h`, which checks its operands: log-probabilities and entropies.
pub(crate) fn log_probs(
    logits: &Tensor,
    targets: &Tensor,
    temperature: f64,
) -> Result<(Tensor, Tensor), LibtorchError> {
    let mut entropies = std::ptr::null_mut();
    let log_probs = tensor("log-probabilities", |out| {
        // SAFETY: as in `products`.
        unsafe { saddle_log_probs(behind(logits), behind(targets), temperature, out, &mut entropies) }
    })?;
    // SAFETY: written together with the first.
    Ok((log_probs, unsafe { Tensor::from_ptr(entropies.cast()) }))
}

/// Outputs side by side in a packed weight on this CPU.
pub(crate) fn panel() -> i64 {
    // SAFETY: takes nothing, reads what the CPU can do.
    unsafe { saddle_panel() }
}

pub(crate) fn cpu_has_bf16_units() -> bool {
    // SAFETY: takes nothing, reads what the CPU can do.
    unsafe { saddle_bf16_units() }
}

/// Each product's `[rows, outputs]` from `input` `[rows, depth]`. The caller, [`crate::kernels`] or [`crate::decoder`], has checked that every
/// pointer is to a contiguous CPU tensor of the size that `kernels.h` names, that lives beyond the call, and that no
/// other tensor shares the memory of an `out`.
pub(crate) fn linear(
    products: &[Product],
    input: *const f32,
    rows: i64,
    depth: i64,
    bf16: bool,
) -> Result<(), LibtorchError> {
    let count = products.len() as i64;
    // SAFETY: the pointers are as the caller has checked; the shim writes nothing but the `out`s.
    checked("a product", unsafe { saddle_linear(products.as_ptr(), count, input, rows, depth, bf16) })
}

/// A decoder's forward pass. Pointers are as [`linear`] says, those of `hidden`, `out` and each layer's `keys` and `values` to memory
/// that nothing else shares; each token's row and position lie within the cache, each wanted one among the tokens.
pub(crate) fn forward(decoder: &Decoder, tokens: &Tokens) -> Result<(), LibtorchError> {
    // SAFETY: the pointers and indices are as the caller has checked; the shim writes `hidden`, `out` and the cache only.
    checked("a forward pass", unsafe { saddle_forward(decoder, tokens) })
}

/// `logits` is `[rows, width]`, neither of them zero, and as [`linear`] says; `uniforms` has a number for each row. Tokens and
/// their log-probabilities.
pub(crate) fn choose(
    logits: *const f32,
    width: i64,
    temperature: f64,
    uniforms: &[f64],
) -> Result<(Vec<i64>, Vec<f32>), LibtorchError> {
    let rows = uniforms.len();
    let (mut tokens, mut log_probs) = (vec![0; rows], vec![0.0; rows]);
    let (uniforms, chosen, scores) = (uniforms.as_ptr(), tokens.as_mut_ptr(), log_probs.as_mut_ptr());
    // SAFETY: `logits` is as the caller has checked; the other three have a number for each row.
    let message = unsafe { saddle_choose(logits, rows as i64, width, temperature, uniforms, chosen, scores) };
    checked("a choice", message)?;
    Ok((tokens, log_probs))
}

/// Weights, gradient, means and squares are as [`linear`] says, each of `count` numbers, and share no memory.
pub(crate) fn adamw(step: &Step, tensors: [*mut f32; 4], count: i64) -> Result<(), LibtorchError> {
    let [weights, gradient, means, squares] = tensors;
    // SAFETY: the pointers are as the caller has checked; the shim writes these four only.
    checked("an optimiser step", unsafe { saddle_adamw(step, weights, gradient, means, squares, count) })
}
