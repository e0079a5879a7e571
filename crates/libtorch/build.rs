//! Compiles the shim against the libtorch that `LIBTORCH` names (set in `.cargo/config.toml`, made by `make setup`).

use std::env;
use std::path::PathBuf;

/// What is compiled against libtorch's headers.
const SHIM: [&str; 5] = ["shim.cpp", "decoder.cpp", "dispatch.cpp", "layers.cpp", "products.cpp"];
/// What is compiled once for each instruction set.
const KERNELS: [&str; 2] = ["decoding.cpp", "training.cpp"];
const HEADERS: [&str; 6] = ["decoder.h", "dispatch.h", "kernels.h", "layers.h", "products.h", "vectors.h"];

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    for file in SHIM.iter().chain(&KERNELS).chain(&HEADERS) {
        println!("cargo:rerun-if-changed=src/{file}");
    }
    let root = PathBuf::from(env::var_os("LIBTORCH").expect("LIBTORCH is not set; build inside the repository"));
    let include = root.join("include");
    assert!(include.is_dir(), "there is no libtorch in {}; remedy: make setup", root.display());

    // The standard and the ABI are those that torch-sys compiles with. libtorch's headers are warned about by nobody.
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .flag("-isystem")
        .flag(include)
        // Without it, libtorch's `parallel_for` is a plain loop.
        .flag("-fopenmp")
        .files(SHIM.map(|file| format!("src/{file}")))
        .compile("saddle_libtorch");
    kernels("baseline", 4, &[]);
    if env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "x86_64") {
        kernels("avx2", 8, &["-mavx2", "-mfma"]);
        let avx512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mfma"];
        kernels("avx512", 16, &avx512);
        kernels("avx512bf16", 16, &[&avx512[..], &["-mavx512bf16"]].concat());
    }
    println!("cargo:rustc-link-search=native={}", root.join("lib").display());
    println!("cargo:rustc-link-lib=torch_cpu");
    println!("cargo:rustc-link-lib=c10");
    // The one that libtorch itself runs on.
    println!("cargo:rustc-link-lib=dylib:+verbatim=libgomp.so.1");
}

/// Compiles the kernels for one instruction set; always optimised, since nothing else makes them what they are.
fn kernels(set: &str, lanes: usize, flags: &[&str]) {
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").opt_level(3).debug(false).flag("-ffp-contract=fast").flag("-fno-math-errno");
    for flag in flags {
        build.flag(flag);
    }
    build
        .define("SADDLE_LANES", lanes.to_string().as_str())
        .define("SADDLE_KERNELS", set)
        .files(KERNELS.map(|file| format!("src/{file}")))
        .compile(&format!("saddle_kernels_{set}"));
}
