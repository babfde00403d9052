//! The program that the demo's image starts: a real interpreter that loads its libraries, then files of both layers,
//! and says that it is ready.

use std::{path::PathBuf, process::Command};

use super::machine::{command_path, quietly};

/// The line that ends the clock begins with this.
pub(crate) const READY: &str = "ready:";
/// The files that the program reads after its own are in; one path a line.
pub(crate) const LIST: &str = "app/load.list";

/// Modules of the standard library that a web service would pull in; those that are missing are passed over.
const MODULES: &[&str] = &[
    "argparse",
    "ast",
    "asyncio",
    "base64",
    "bisect",
    "bz2",
    "calendar",
    "cProfile",
    "cmd",
    "code",
    "codecs",
    "collections",
    "colorsys",
    "compileall",
    "concurrent.futures",
    "configparser",
    "contextlib",
    "copy",
    "csv",
    "ctypes",
    "curses",
    "dataclasses",
    "datetime",
    "decimal",
    "difflib",
    "dis",
    "doctest",
    "email",
    "email.message",
    "email.mime.text",
    "encodings.idna",
    "enum",
    "filecmp",
    "fileinput",
    "fractions",
    "ftplib",
    "functools",
    "getpass",
    "gettext",
    "glob",
    "graphlib",
    "gzip",
    "hashlib",
    "heapq",
    "hmac",
    "html.parser",
    "http.client",
    "http.cookiejar",
    "http.server",
    "imaplib",
    "importlib.metadata",
    "inspect",
    "ipaddress",
    "json",
    "linecache",
    "locale",
    "logging",
    "logging.config",
    "logging.handlers",
    "lzma",
    "mailbox",
    "mimetypes",
    "mmap",
    "multiprocessing",
    "multiprocessing.pool",
    "netrc",
    "optparse",
    "pathlib",
    "pdb",
    "pickle",
    "pickletools",
    "pkgutil",
    "platform",
    "plistlib",
    "poplib",
    "pprint",
    "profile",
    "pstats",
    "pydoc",
    "queue",
    "random",
    "readline",
    "sched",
    "secrets",
    "selectors",
    "shelve",
    "shlex",
    "shutil",
    "smtplib",
    "socketserver",
    "sqlite3",
    "ssl",
    "statistics",
    "string",
    "stringprep",
    "subprocess",
    "symtable",
    "tarfile",
    "tempfile",
    "textwrap",
    "timeit",
    "trace",
    "tracemalloc",
    "types",
    "typing",
    "unittest",
    "unittest.mock",
    "urllib.request",
    "urllib.robotparser",
    "uuid",
    "venv",
    "wave",
    "weakref",
    "webbrowser",
    "wsgiref.simple_server",
    "xml.dom.minidom",
    "xml.etree.ElementTree",
    "xml.sax",
    "xmlrpc.client",
    "xmlrpc.server",
    "zipapp",
    "zipfile",
    "zoneinfo",
];

/// What runs in the image.
#[derive(Debug, Clone)]
pub(crate) enum App {
    /// A Python with its standard library.
    Python {
        /// The interpreter.
        program: PathBuf,
        /// Its library's directory.
        library: PathBuf,
    },
    /// A shell that starts other programs.
    Shell {
        /// `sh`.
        program: PathBuf,
        /// What it starts, by absolute path.
        starts: Vec<PathBuf>,
    },
}

impl App {
    /// The best this machine has.
    pub(crate) fn choose(programs: &[PathBuf]) -> Option<Self> {
        let pythons = [
            Some(PathBuf::from("/usr/bin/python3")),
            command_path("python3"),
        ];
        for python in pythons.into_iter().flatten().filter(|path| path.exists()) {
            let ask = "import sys, sysconfig; print(sys.executable); print(sysconfig.get_paths()['stdlib'])";
            let Ok(told) = quietly(Command::new(&python).args(["-I", "-c", ask])) else {
                continue;
            };
            let mut lines = told.lines().map(PathBuf::from);
            if let (Some(program), Some(library)) = (lines.next(), lines.next())
                && program.is_absolute()
                && library.is_dir()
            {
                return Some(Self::Python { program, library });
            }
        }
        Some(Self::Shell {
            program: command_path("sh")?,
            starts: programs.to_vec(),
        })
    }

    /// Its name, for the table.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Python { program, .. } => program.file_name().map_or_else(
                || "python".into(),
                |name| name.to_string_lossy().into_owned(),
            ),
            Self::Shell { .. } => "sh".into(),
        }
    }

    /// The script's path in the image and its text.
    pub(crate) fn script(&self) -> (&'static str, String) {
        match self {
            Self::Python { .. } => (
                "app/start.py",
                format!(
                    r"import importlib
for name in {MODULES:?}:
    try:
        importlib.import_module(name)
    except Exception:
        pass
files = size = 0
with open('/{LIST}') as listed:
    for path in listed:
        with open(path.rstrip('\n'), 'rb') as opened:
            size += len(opened.read())
            files += 1
print(f'{READY} {{files}} files, {{size}} bytes', flush=True)
"
                ),
            ),
            Self::Shell { starts, .. } => {
                let starts: String = starts
                    .iter()
                    .map(|path| {
                        format!(
                            "'{}' --version >/dev/null 2>&1 </dev/null\n",
                            path.display()
                        )
                    })
                    .collect();
                (
                    "app/start.sh",
                    format!(
                        "{starts}while read -r path; do cat \"$path\"; done </{LIST} >/dev/null\necho '{READY} all files'\n"
                    ),
                )
            }
        }
    }

    /// What the container starts.
    pub(crate) fn command(&self) -> Vec<String> {
        let script = format!("/{}", self.script().0);
        match self {
            Self::Python { program, .. } => {
                vec![program.display().to_string(), "-I".into(), script]
            }
            Self::Shell { program, .. } => vec![program.display().to_string(), script],
        }
    }
}
