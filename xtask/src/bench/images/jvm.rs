//! A JVM with Spring Boot and its web server.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use forelayer_tests::engine::{packages, process};

use super::Recipe;

pub(super) const RECIPE: Recipe = Recipe {
    command: r#"["java","-cp","/srv/app/lib/*","bench.Ready"]"#,
    layer: |tree| {
        tree.install(&["openjdk-17-jre-headless"])?;
        for (program, package) in [("javac", "openjdk-17-jdk-headless"), ("mvn", "maven")] {
            if !process::found(program) {
                packages::install(&[package])?;
            }
        }
        let project = tree.scratch("maven")?;
        let sources = project.join("src/main/java/bench");
        fs::create_dir_all(&sources)?;
        fs::write(project.join("pom.xml"), PROJECT)?;
        fs::write(sources.join("Ready.java"), include_str!("jvm/Ready.java"))?;
        process::run(
            process::command("mvn")
                .args(["--batch-mode", "--quiet"])
                .arg(format!(
                    "-Dmaven.repo.local={}",
                    project.join("repository").display()
                ))
                .arg("package")
                .arg("org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies")
                .arg("-DincludeScope=runtime")
                .current_dir(&project),
        )
        .context("Maven cannot build the program")?;
        let library = tree.outside().join("srv/app/lib");
        fs::create_dir_all(&library)?;
        copy_all(&project.join("target/dependency"), &library)?;
        fs::copy(project.join("target/app-1.jar"), library.join("app.jar"))?;
        Ok(())
    },
};

fn copy_all(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

const PROJECT: &str = r#"<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>bench</groupId>
  <artifactId>app</artifactId>
  <version>1</version>
  <properties>
    <maven.compiler.source>17</maven.compiler.source>
    <maven.compiler.target>17</maven.compiler.target>
    <project.build.sourceEncoding>UTF-8</project.build.sourceEncoding>
  </properties>
  <dependencies>
    <dependency>
      <groupId>org.springframework.boot</groupId>
      <artifactId>spring-boot-starter-web</artifactId>
      <version>3.3.5</version>
    </dependency>
  </dependencies>
</project>
"#;
