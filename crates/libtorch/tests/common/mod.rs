//! Numbers to compute with, and comparisons.

use tch::{Device, Kind, Tensor};

/// The same tests in this process's like, with each narrower set of kernels: what they find here holds on other processors.
pub(crate) fn run_again_with_narrower_kernels() {
    if std::env::var_os("SADDLE_KERNELS").is_some() {
        return;
    }
    for set in ["avx512", "avx2", "baseline"] {
        let tests = std::env::current_exe().expect("the path of these tests");
        let run = std::process::Command::new(tests).env("SADDLE_KERNELS", set).output().expect("these tests run again");
        assert!(run.status.success(), "{set}: {}", String::from_utf8_lossy(&run.stdout));
    }
}

/// Numbers in −1..1 that follow from their places, with no pattern that would hide a mistake.
pub(crate) fn numbers(shape: &[i64], seed: f64) -> Tensor {
    let count = shape.iter().product::<i64>();
    let places = Tensor::arange(count, (Kind::Double, Device::Cpu));
    ((places * 12.9898 + seed).sin() * 43758.5453).sin().to_kind(Kind::Float).view(shape)
}

pub(crate) fn check(what: &str, found: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(found.size(), expected.size(), "{what}");
    let largest = (found - expected).abs().max().double_value(&[]);
    assert!(largest <= tolerance, "{what}: differs by {largest}");
}
