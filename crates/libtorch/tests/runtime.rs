//! The shim against the libtorch that is linked.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use saddle_libtorch::layers::swiglu;
use saddle_libtorch::{EXPECTED_VERSION, LibtorchError, cpu_capability, device, load_cuda, set_threads, threads};
use tch::{Device, Kind, Tensor};

#[test]
fn the_loaded_libtorch_is_the_expected_one() {
    assert_eq!(saddle_libtorch::version().unwrap(), EXPECTED_VERSION);
}

#[test]
fn the_cpu_capability_is_one_that_libtorch_has_kernels_for() {
    let capability = cpu_capability().unwrap();
    assert!(["DEFAULT", "AVX2", "AVX512"].contains(&capability.as_str()), "{capability}");
}

#[test]
fn the_cpu_is_always_a_device() {
    assert_eq!(device("cpu"), Ok(Device::Cpu));
}

/// Holds on every machine: with CUDA the device works, without it the error names the remedy.
#[test]
fn cuda_loads_or_says_what_to_do() {
    match load_cuda() {
        Ok(status) => {
            let beyond = device("cuda:127").unwrap_err();
            assert_eq!(beyond, LibtorchError::NoSuchDevice { index: 127, devices: status.devices });
            if status.devices > 0 {
                let sum = Tensor::ones([3], (Kind::Float, device("cuda").unwrap())).sum(Kind::Float);
                assert_eq!(sum.double_value(&[]), 3.0);
            }
        }
        Err(error) => {
            assert!(error.to_string().contains("make setup CUDA=1"), "{error}");
            assert_eq!(device("cuda:0"), Err(error.clone()), "the second answer is the first");
            assert_eq!(load_cuda(), Err(error));
        }
    }
}

/// Work that is large enough for libtorch, and for this crate's own kernels, to share it out.
fn parallel_work() {
    let input = Tensor::ones([1 << 18], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    swiglu(&input.exp(), &input).expect("operands of one shape").sum(Kind::Float).backward();
}

#[test]
fn each_thread_keeps_its_own_thread_count_even_when_its_first_work_comes_after_another_thread_set_one() {
    fn stage(count: usize, ready: SyncSender<()>, proceed: Receiver<()>) -> usize {
        set_threads(count).unwrap();
        ready.send(()).unwrap();
        proceed.recv().unwrap();
        parallel_work();
        threads().unwrap()
    }
    thread::scope(|scope| {
        let ((first_ready, first_set), (first_go, first_proceed)) = (sync_channel(1), sync_channel(1));
        let ((second_ready, second_set), (second_go, second_proceed)) = (sync_channel(1), sync_channel(1));
        let first = scope.spawn(move || stage(1, first_ready, first_proceed));
        first_set.recv().unwrap();
        let second = scope.spawn(move || stage(3, second_ready, second_proceed));
        second_set.recv().unwrap();
        first_go.send(()).unwrap();
        second_go.send(()).unwrap();
        assert_eq!((first.join().unwrap(), second.join().unwrap()), (1, 3));
    });
}

#[test]
fn zero_threads_and_too_many_are_refused() {
    for asked in [0, 1025, usize::MAX] {
        assert_eq!(set_threads(asked), Err(LibtorchError::ThreadCount { threads: asked, limit: 1024 }));
    }
}

#[test]
fn accumulation_at_repeated_indices_repeats_to_the_bit_once_algorithms_are_deterministic() {
    saddle_libtorch::use_deterministic_algorithms(true).unwrap();
    set_threads(4).unwrap();
    let count = 1 << 18;
    let values = Tensor::arange(count, (Kind::Float, Device::Cpu)).sin();
    let index = Tensor::arange(count, (Kind::Int64, Device::Cpu)).remainder(7);
    let accumulate = || {
        let mut sums = Tensor::zeros([7], (Kind::Float, Device::Cpu));
        sums.f_index_put_(&[Some(&index)], &values, true).unwrap()
    };
    let first = accumulate();
    for _ in 0..8 {
        assert!(accumulate().equal(&first));
    }
    saddle_libtorch::use_deterministic_algorithms(false).unwrap();
}
