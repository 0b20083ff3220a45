//! Every crate that ends up in the binary has a licence that goes with ours, Apache-2.0 OR MIT.

use std::collections::{HashMap, HashSet};
use std::process::Command;

use serde_json::Value;

/// Licences under which a part of our binary may be used. A crate may offer others beside one of
/// these.
const ALLOWED: [&str; 10] = [
    "MIT",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Zlib",
    "0BSD",
    "Unlicense",
    "Unicode-3.0",
    "BSL-1.0",
];

/// Whether an SPDX expression can be met with [`ALLOWED`] alone.
fn is_allowed(expression: &str) -> bool {
    let plain = expression.replace(['(', ')'], " ").replace('/', " OR ");
    let meets = |licence: &str| ALLOWED.contains(&licence.split(" WITH ").next().unwrap().trim());
    // Without nesting, AND binds closer: every alternative is a list of licences that all hold.
    if expression.contains('(') {
        return plain.split(" AND ").all(|part| part.split(" OR ").any(meets));
    }
    plain.split(" OR ").any(|alternative| alternative.split(" AND ").all(meets))
}

#[test]
fn expressions_are_read_as_spdx_means_them() {
    for allowed in
        ["MIT", "MIT OR Apache-2.0", "GPL-2.0 OR MIT", "(MIT OR Apache-2.0) AND Unicode-3.0"]
    {
        assert!(is_allowed(allowed), "{allowed}");
    }
    for refused in ["GPL-3.0", "MIT AND GPL-3.0", "MPL-2.0", "(MIT OR Apache-2.0) AND GPL-2.0", ""]
    {
        assert!(!is_allowed(refused), "{refused}");
    }
}

#[test]
fn licences_of_all_dependencies_go_with_ours() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo prints JSON");
    let list = |value: &Value, key: &str| value[key].as_array().cloned().unwrap_or_default();

    // From our package along the arrows that are not of tests and benches alone.
    let nodes: HashMap<String, Value> = list(&metadata["resolve"], "nodes")
        .into_iter()
        .map(|node| (node["id"].as_str().expect("an id").to_owned(), node))
        .collect();
    let mut reached = HashSet::new();
    let mut next: Vec<String> = nodes.keys().filter(|id| id.contains("wsgate")).cloned().collect();
    while let Some(id) = next.pop() {
        let dependencies = list(&nodes[&id], "deps").into_iter();
        let normal = dependencies.filter(|dependency| {
            list(dependency, "dep_kinds").iter().any(|kind| kind["kind"] != "dev")
        });
        if reached.insert(id.clone()) {
            next.extend(
                normal.map(|dependency| dependency["pkg"].as_str().expect("an id").to_owned()),
            );
        }
    }
    assert!(reached.len() > 20, "the graph of dependencies was not read");

    let refused: Vec<String> = list(&metadata, "packages")
        .into_iter()
        .filter(|package| reached.contains(package["id"].as_str().expect("an id")))
        .filter(|package| !is_allowed(package["license"].as_str().unwrap_or_default()))
        .map(|package| format!("{} is under {}", package["name"], package["license"]))
        .collect();
    assert!(refused.is_empty(), "{refused:#?}");
}
