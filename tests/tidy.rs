//! The house rules, as tests. What a rule is for is said in `services/ARCHITECTURE.md`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
};

use cargo_metadata::{DependencyKind, MetadataCommand};
use regex::Regex;

const OURS: &str = "dashstream-";
const SELF: &str = "tests/tidy.rs";
const MAIN_LINES_MAX: usize = 60;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace").to_owned()
}

/// Path (from the root) and text of every file that git knows or would, and that is text.
fn files() -> &'static BTreeMap<String, String> {
    static FILES: LazyLock<BTreeMap<String, String>> = LazyLock::new(|| {
        let mut git = Command::new("git");
        git.current_dir(root()).args(["ls-files", "-co", "--exclude-standard"]);
        let listed = git.output().expect("run git");
        assert!(listed.status.success(), "list the files: {}", String::from_utf8_lossy(&listed.stderr));
        let listed = String::from_utf8(listed.stdout).expect("our paths are text");
        listed
            .lines()
            .filter_map(|path| Some((path.to_owned(), fs::read_to_string(root().join(path)).ok()?)))
            .collect()
    });
    &FILES
}

/// The files that end in one of these.
fn sources(endings: &[&str]) -> impl Iterator<Item = (&'static str, &'static str)> {
    let is_source = move |path: &str| endings.iter().any(|ending| path.ends_with(ending));
    files().iter().map(|(path, text)| (path.as_str(), text.as_str())).filter(move |(path, _)| is_source(path))
}

/// `path:line: text` of every line in which `pattern` is found, for files that `applies` to.
fn findings(endings: &[&str], pattern: &str, applies: impl Fn(&str) -> bool) -> Vec<String> {
    let pattern = Regex::new(pattern).expect("a pattern");
    let mut found = Vec::new();
    for (path, text) in sources(endings).filter(|(path, _)| *path != SELF && applies(path)) {
        for (number, line) in text.lines().enumerate().filter(|(_, line)| pattern.is_match(line)) {
            found.push(format!("{path}:{}: {}", number + 1, line.trim()));
        }
    }
    found
}

fn none(found: &[String], rule: &str) {
    assert!(found.is_empty(), "{rule}:\n{}", found.join("\n"));
}

/// What each of our packages needs to run and to be built, without its tests.
fn imports() -> BTreeMap<String, BTreeSet<String>> {
    let metadata = MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .other_options(["--locked".to_owned(), "--no-deps".to_owned()])
        .exec()
        .expect("ask cargo for metadata");
    let packages = metadata.packages.iter().map(|package| {
        let shipped =
            package.dependencies.iter().filter(|dependency| dependency.kind != DependencyKind::Development);
        (package.name.to_string(), shipped.map(|dependency| dependency.name.clone()).collect())
    });
    packages.collect()
}

#[test]
fn crates_import_only_what_the_layout_allows() {
    let allowed = |package: &str| -> &[&str] {
        match package {
            "proto" | "kit" => &[],
            "core" => &["proto"],
            "producer" => &["proto", "core", "kafka"],
            "kafka" => &["kit"],
            "ingest" => &["proto", "core", "kit", "kafka"],
            "replay" | "gateway" => &["proto", "core", "kit"],
            "ctl" => &["proto", "core", "kit", "kafka", "producer", "ingest", "replay", "gateway"],
            "tests" => &["proto", "core", "kit", "kafka", "producer", "ingest", "replay", "gateway", "ctl"],
            other => panic!("{other} is new: say here what it may import"),
        }
    };
    for (package, imports) in imports() {
        let package = package.strip_prefix(OURS).expect("our packages share a prefix");
        for import in imports.iter().filter_map(|import| import.strip_prefix(OURS)) {
            assert!(allowed(package).contains(&import), "{package} must not import {import}");
        }
    }
}

#[test]
fn each_outside_world_has_one_door() {
    let doors: [(&str, &[&str]); 3] = [
        ("rdkafka", &["kafka", "ingest", "producer", "ctl", "tests"]),
        ("redis", &["replay", "tests"]),
        ("axum", &["gateway", "kit"]),
    ];
    for (package, imports) in imports() {
        let package = package.strip_prefix(OURS).expect("our packages share a prefix");
        for (library, users) in doors {
            assert!(
                !imports.contains(library) || users.contains(&package),
                "{package} must not use {library}"
            );
        }
    }
}

#[test]
fn the_core_is_pure() {
    let imports = &imports()["dashstream-core"];
    for impure in ["tokio", "tokio-util", "rdkafka", "redis", "axum", "tonic", "rand", "tracing", "reqwest"] {
        assert!(!imports.contains(impure), "core must not use {impure}");
    }
    let clock = r"Instant::now|SystemTime::now|std::(env|fs|net|process|thread)\b";
    none(&findings(&[".rs"], clock, |path| path.starts_with("services/core/src")), "core does no I/O");
}

#[test]
fn sources_carry_no_ticket_ids_and_no_emoji() {
    let endings =
        [".rs", ".proto", ".ts", ".tsx", ".yaml", ".yml", ".sh", "Justfile", "justw", ".ci/run", ".md"];
    let free = |path: &str| !path.starts_with("proto/vectors/");
    none(&findings(&endings, r"\b[MS]-\d{2,4}\b", free), "history belongs to git, ids to tests/ledger.toml");
    none(&findings(&endings, r"[\p{Emoji_Presentation}\x{FE0F}]", free), "no emoji");
}

#[test]
fn nothing_is_left_undone() {
    let undone = r"#\[ignore|\b(todo|unimplemented)!|\b(TODO|FIXME|XXX)\b";
    none(&findings(&[".rs", ".ts", ".tsx", ".proto"], undone, |_| true), "finish it, or open an issue");
}

#[test]
fn tests_wait_for_events_and_not_for_time() {
    let real_time = |path: &str| is_test(path) && !files()[path].contains("start_paused = true");
    none(
        &findings(&[".rs"], r"\bsleep\(", real_time),
        "`eventually` waits for what is awaited; a sleep waits too long or not long enough",
    );
}

/// Code that only tests run, by its place; test modules inside a source file are left to review.
fn is_test(path: &str) -> bool {
    path.starts_with("tests/") || path.contains("/tests/") || path.ends_with("/tests.rs")
}

#[test]
fn only_the_kit_reads_the_environment_and_spawns_tasks() {
    // A build script is spoken to by Cargo, through the environment.
    let outside = |path: &str| !path.starts_with("services/kit/") && !path.ends_with("build.rs");
    let environment = r"\benv::(var|var_os|vars|vars_os)\b";
    none(&findings(&[".rs"], environment, outside), "settings come through config.rs");
    let spawn = r"\btokio::(task::)?(spawn|spawn_local)\b|use tokio::task::\{[^}]*\bspawn\b";
    none(&findings(&[".rs"], spawn, outside), "tasks are spawned by kit::tasks, which drains them");
}

#[test]
fn clients_of_kafka_are_configured_in_one_place() {
    let elsewhere = |path: &str| !path.starts_with("services/kafka/") && !is_test(path);
    none(
        &findings(&[".rs"], r"\bClientConfig::(new|default|from)\b", elsewhere),
        "Kafka's security settings reach every client through dashstream_kafka::Connection",
    );
}

#[test]
fn a_main_only_assembles() {
    for (path, text) in sources(&["main.rs"]).filter(|(path, _)| path.starts_with("services/")) {
        let lines = text.lines().count();
        assert!(lines < MAIN_LINES_MAX, "{path} has {lines} lines, fewer than {MAIN_LINES_MAX} will do");
    }
}

#[test]
fn every_test_that_the_ledger_names_exists() {
    let ledger = &files()["tests/ledger.toml"];
    let ledger: BTreeMap<String, Vec<BTreeMap<String, toml::Value>>> =
        toml::from_str(ledger).expect("parse the ledger");
    let known = test_names();
    let mut ids = BTreeSet::new();
    for row in ledger.into_values().flatten() {
        let id = row["id"].as_str().expect("an id is a string").to_owned();
        let tests = row.get("tests").and_then(toml::Value::as_array).expect("a row lists its tests");
        assert!(!tests.is_empty(), "{id}: nothing holds it");
        for test in tests.iter().map(|test| test.as_str().expect("a test is named")) {
            let (file, name) =
                test.split_once("::").unwrap_or_else(|| panic!("{id}: {test} is not file::name"));
            assert!(known.contains(&(file, name)), "{id}: there is no test {name} in {file}");
        }
        assert!(ids.insert(id.clone()), "{id} has two rows");
    }
}

/// Path and name of every test function: of Rust ones, and of TypeScript's `test("name"`.
fn test_names() -> BTreeSet<(&'static str, &'static str)> {
    let rust = Regex::new(r"(?m)#\[(?:tokio::)?test[^\]]*\](?:\s*#\[[^\]]*\])*\s*(?:async )?fn (\w+)")
        .expect("a pattern");
    let property = Regex::new(r"(?m)^\s*#\[test\]\s*fn (\w+)").expect("a pattern");
    let script = Regex::new(r#"\b(?:test|it)\(\s*["'`]([^"'`]+)["'`]"#).expect("a pattern");
    let in_rust = sources(&[".rs"]).flat_map(|(path, text)| {
        rust.captures_iter(text).chain(property.captures_iter(text)).map(move |found| (path, name(&found)))
    });
    let in_script = sources(&[".ts", ".tsx"])
        .flat_map(|(path, text)| script.captures_iter(text).map(move |found| (path, name(&found))));
    in_rust.chain(in_script).collect()
}

fn name(found: &regex::Captures<'static>) -> &'static str {
    found.get(1).expect("the pattern has a group").as_str()
}
