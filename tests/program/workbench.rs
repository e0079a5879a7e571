//! What the tests of the program share: a bench to run `saddle` on, and small trained models to run it with.
//!
//! Every command runs in an empty folder of its test, in which `recipes` leads to those beside this file and `fixture` to a world,
//! a policy, a reward model and a cost model. The fixture is made by the program under test, once for each build of it,
//! whatever processes the tests run in; tests only read it.

use serde_json::Value;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use tempfile::TempDir;

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_saddle");
const RECIPES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/program/recipes");
/// Where cargo lets tests keep files from one process to the next.
const KEPT: &str = env!("CARGO_TARGET_TMPDIR");

/// What a command came to.
pub(crate) struct Outcome {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Outcome {
    /// Standard output as one JSON value.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {}", self.stdout))
    }

    /// Standard output as one JSON value a line.
    pub(crate) fn rows(&self) -> Vec<Value> {
        parse_lines(&self.stdout)
    }
}

/// A folder to run commands in.
pub(crate) struct Workbench {
    folder: TempDir,
}

impl Workbench {
    /// An empty folder, with the recipes and the fixture in reach.
    pub(crate) fn new() -> Self {
        let bench = Self { folder: tempfile::tempdir().expect("a folder can be made") };
        symlink(RECIPES, bench.path("recipes")).expect("a link can be made");
        symlink(fixture(), bench.path("fixture")).expect("a link can be made");
        bench
    }

    /// The full path of a file here.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file here.
    pub(crate) fn write(&self, name: &str, contents: impl AsRef<[u8]>) {
        fs::write(self.path(name), contents).unwrap_or_else(|error| panic!("{name}: {error}"));
    }

    /// Reads a text file here.
    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// The JSON values of a file here, one a line.
    pub(crate) fn rows(&self, name: &str) -> Vec<Value> {
        parse_lines(&self.read(name))
    }

    /// The one JSON value of a file here.
    pub(crate) fn value(&self, name: &str) -> Value {
        serde_json::from_str(&self.read(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Copies a model of the fixture here, to be damaged.
    pub(crate) fn copy_model(&self, stage: &str, name: &str) {
        let to = self.path(name);
        fs::create_dir(&to).unwrap_or_else(|error| panic!("{name}: {error}"));
        for entry in fs::read_dir(self.path(&format!("fixture/{stage}/model"))).expect("the fixture has this model") {
            let entry = entry.expect("the model's folder can be listed");
            fs::copy(entry.path(), to.join(entry.file_name())).expect("a small file can be copied");
        }
    }

    /// Runs `saddle` with the words of `command` as its arguments.
    pub(crate) fn saddle(&self, command: &str) -> Outcome {
        self.saddle_reading(command, "")
    }

    /// The same with `input` on standard input.
    pub(crate) fn saddle_reading(&self, command: &str, input: &str) -> Outcome {
        run(self.folder.path(), command, input)
    }

    /// Starts `saddle` with the words of `command` as its arguments, with its standard error to read.
    pub(crate) fn start(&self, command: &str) -> Child {
        std::process::Command::new(PROGRAM)
            .args(command.split_whitespace())
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts")
    }

    /// Runs a command that must succeed.
    pub(crate) fn succeed(&self, command: &str) -> Outcome {
        self.succeed_reading(command, "")
    }

    /// The same with `input` on standard input.
    pub(crate) fn succeed_reading(&self, command: &str, input: &str) -> Outcome {
        require_success(command, self.saddle_reading(command, input))
    }

    /// Runs a command that must be refused with exit code 2: with each of `expected` in what it says on standard error,
    /// and with nothing else to show for it.
    pub(crate) fn refuse(&self, command: &str, expected: &[&str]) {
        self.refuse_reading(command, "", expected);
    }

    /// The same with `input` on standard input.
    pub(crate) fn refuse_reading(&self, command: &str, input: &str, expected: &[&str]) {
        self.fail_reading(command, input, 2, expected);
    }

    /// Runs a command that must fail with exit code `code`, in the way that [`Self::refuse`] describes.
    pub(crate) fn fail_reading(&self, command: &str, input: &str, code: i32, expected: &[&str]) {
        let outcome = self.saddle_reading(command, input);
        let shown = format!("saddle {command}\n{}", outcome.stderr);
        assert_eq!(outcome.code, code, "{shown}");
        for text in expected {
            assert!(outcome.stderr.contains(text), "no {text:?} in what was said by {shown}");
        }
        assert!(!outcome.stderr.contains("panicked"), "{shown}");
        assert_eq!(outcome.stdout, "", "{shown}");
        assert!(!self.path("run/model").is_dir(), "half a model was left by {shown}");
    }

    /// Trains the stage `stage` of `recipes` into the folder `run`, with more arguments, and returns its result.
    pub(crate) fn train(&self, stage: &str, run: &str, more: &str) -> Value {
        self.succeed(&format!("{stage} --config {} --run {run} --json {more}", recipe(stage))).json()
    }
}

/// The recipe of a stage, as a command in a bench's folder names it.
fn recipe(stage: &str) -> String {
    let name = if stage.ends_with("-model") { "score-model" } else { stage };
    format!("recipes/{name}.toml")
}

fn run(folder: &Path, command: &str, input: &str) -> Outcome {
    let output = assert_cmd::Command::new(PROGRAM)
        .args(command.split_whitespace())
        .current_dir(folder)
        .write_stdin(input)
        .output()
        .expect("the program starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("the program prints UTF-8");
    Outcome {
        code: output.status.code().expect("the program ends by itself"),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

fn require_success(command: &str, outcome: Outcome) -> Outcome {
    assert_eq!(outcome.code, 0, "saddle {command}\n{}", outcome.stderr);
    outcome
}

fn parse_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

/// The fixture of this build of the program; made first if it is not there yet.
fn fixture() -> PathBuf {
    let path = Path::new(KEPT).join("fixture");
    let lock = File::create(Path::new(KEPT).join("fixture.lock")).expect("the lock can be made");
    lock.lock().expect("the lock can be waited for");
    let made_from = ingredients();
    if fs::read_to_string(path.join("made-from")).is_ok_and(|found| found == made_from) {
        return path;
    }
    if path.is_dir() {
        fs::remove_dir_all(&path).expect("the fixture of an earlier build can be removed");
    }
    let folder = tempfile::tempdir_in(KEPT).expect("a folder can be made");
    symlink(RECIPES, folder.path().join("recipes")).expect("a link can be made");
    let make = |command: &str| require_success(command, run(folder.path(), command, ""));
    make("world --out fixture/world");
    for stage in ["sft", "reward-model", "cost-model"] {
        make(&format!("{stage} --config {} --run fixture/{stage}", recipe(stage)));
    }
    let made = folder.path().join("fixture");
    fs::write(made.join("made-from"), made_from).expect("the fixture can be stamped");
    fs::rename(made, &path).expect("the fixture can be moved to its place");
    path
}

/// What the fixture follows from: the build of the program, and the recipes.
fn ingredients() -> String {
    let program = fs::metadata(PROGRAM).and_then(|metadata| metadata.modified()).expect("the program was built");
    let recipe = |name| fs::read_to_string(format!("{RECIPES}/{name}.toml")).expect("the recipe is there");
    format!("{program:?}\n{}", ["sft", "score-model"].map(recipe).concat())
}
