//! Node with what a web project has in `node_modules`.

use std::fs;

use anyhow::Context as _;
use forelayer_tests::engine::{packages, process};

use super::Recipe;

pub(super) const RECIPE: Recipe = Recipe {
    command: r#"["node","/srv/app/server.js"]"#,
    layer: |tree| {
        tree.install(&["nodejs"])?;
        if !process::found("npm") {
            packages::install(&["npm"])?;
        }
        // Not in the tree itself: it lies in another namespace, where npm loses its way.
        let project = tree.scratch("npm")?;
        fs::write(project.join("package.json"), PACKAGE)?;
        fs::write(project.join("server.js"), include_str!("node/server.js"))?;
        process::run(
            process::command("npm")
                .args(["install", "--ignore-scripts", "--no-audit", "--no-fund"])
                .args(["--no-package-lock", "--prefix"])
                .arg(&project)
                .arg("--cache")
                .arg(tree.scratch("npm-cache")?)
                .current_dir(&project),
        )
        .context("npm cannot install the packages")?;
        // It says where the packages came from, which is this machine's own affair.
        let hidden = project.join("node_modules/.package-lock.json");
        if hidden.exists() {
            fs::remove_file(hidden)?;
        }
        let app = tree.outside().join("srv/app");
        process::run(
            process::command("cp")
                .args(["--recursive", "--no-dereference", "--preserve=mode,links"])
                .arg(&project)
                .arg(&app),
        )?;
        Ok(())
    },
};

const PACKAGE: &str = r#"{
  "name": "bench",
  "version": "1.0.0",
  "private": true,
  "dependencies": {
    "@babel/core": "7.26.0",
    "@babel/preset-env": "7.26.0",
    "@babel/preset-react": "7.26.3",
    "axios": "1.7.9",
    "date-fns": "4.1.0",
    "eslint": "8.57.1",
    "express": "4.21.2",
    "lodash": "4.17.21",
    "moment": "2.30.1",
    "next": "14.2.21",
    "prettier": "3.4.2",
    "react": "18.3.1",
    "react-dom": "18.3.1",
    "rxjs": "7.8.1",
    "typescript": "5.7.2",
    "webpack": "5.97.1",
    "winston": "3.17.0"
  }
}
"#;
