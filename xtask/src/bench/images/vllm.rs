//! The image that lazy layers are for: vllm from its Python package, ten gigabytes unpacked.

use std::fs;

use anyhow::{Context as _, ensure};
use forelayer_tests::engine::{packages, process};

use super::Recipe;

pub(super) const RECIPE: Recipe = Recipe {
    command: r#"["python3","/usr/local/bin/serve.py"]"#,
    layer: |tree| {
        tree.install(&["python3", "python3-dev", "gcc", "libc6-dev"])?;
        if !process::found("pip") {
            packages::install(&["python3-pip"])?;
        }
        let target = tree.outside().join(PACKAGES.trim_start_matches('/'));
        // For the image's Python, whichever this machine has.
        let mut pip = tree.command("pip");
        pip.args(["install", "--quiet", "--no-cache-dir", "--no-compile"])
            .args(["--only-binary", ":all:", "--implementation", "cp"])
            .args(["--python-version", "3.11", "--abi", "cp311"])
            .arg("--target")
            .arg(&target)
            .env("TMPDIR", tree.scratch("pip")?);
        for glibc in [36, 35, 34, 31, 28, 27, 26, 24, 17, 12, 5] {
            let platform = format!("manylinux_2_{glibc}_{}", std::env::consts::ARCH);
            pip.args(["--platform", &platform]);
        }
        for old in ["2014", "2010", "1"] {
            let platform = format!("manylinux{old}_{}", std::env::consts::ARCH);
            pip.args(["--platform", &platform]);
        }
        process::run(pip.arg("vllm==0.11.0").args(OF_ITS_TIME))
            .context("pip cannot install vllm")?;
        fs::write(tree.outside().join("usr/local/bin/serve.py"), PROGRAM)?;
        // As pip does where it runs in the image's own Python. What is no Python of this version it leaves as it is.
        let compile = format!("python3 -m compileall -q {PACKAGES} > /dev/null; true");
        let mut chroot = tree.command("chroot");
        process::run(chroot.arg(tree.inside()).args(["sh", "-c", &compile]))?;
        let compiled = target.join("vllm/__pycache__/__init__.cpython-311.pyc");
        ensure!(compiled.exists(), "vllm was not compiled");
        Ok(())
    },
};

/// The server's module, as far as it comes without a graphics card.
const PROGRAM: &str = r#"import vllm.entrypoints.openai.api_server

print("ready", vllm.__version__, flush=True)
"#;

/// Where they are.
const PACKAGES: &str = "/usr/local/lib/python3.11/dist-packages";

/// Its requirements name lowest versions only; what came a year after it is not what it was written for.
const OF_ITS_TIME: &[&str] = &[
    "cachetools<7",
    "fastapi<0.119",
    "huggingface_hub<1",
    "mistral_common<1.9",
    "openai<2.1",
    "opencv-python-headless<4.13",
    "prometheus-fastapi-instrumentator<7.2",
    "protobuf<6.33",
    "pydantic<2.12",
    "ray<2.51",
    "setuptools<80",
    "starlette<0.49",
    "transformers<4.58",
    "uvicorn<0.38",
    "websockets<16",
];
