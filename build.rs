//! The program finds libtorch where it was built against it, wherever the program itself is: its directory of build outputs may lie
//! elsewhere, and it may be installed.

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    if let Some(libtorch) = std::env::var_os("LIBTORCH") {
        let libraries = std::path::Path::new(&libtorch).join("lib");
        println!("cargo:rustc-link-arg-bins=-Wl,-rpath,{}", libraries.display());
    }
}
