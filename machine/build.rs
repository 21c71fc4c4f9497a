//! Compiles the object that is loaded into QEMU (`src/qemu/preload.c`).

use std::path::PathBuf;

fn main() {
    let source = "src/qemu/preload.c";
    println!("cargo:rerun-if-changed={source}");
    let object = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("preload.so");
    let mut command = cc::Build::new().opt_level(2).get_compiler().to_command();
    command.args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O2", "-fPIC", "-shared", "-o"]);
    command.arg(&object).arg(source);
    match command.status() {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("compiling {source} failed: {status}"),
        Err(error) => panic!("no C compiler ({error}): install gcc and libc6-dev, or set CC"),
    }
}
