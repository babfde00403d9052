//! `forelayer status`.

use std::process::ExitCode;

use forelayer::{config::Config, control::Status};

use super::{client, human};

/// Show what is served and how much of it is here.
///
/// Example: forelayer status --json | jq '.images[].reference'
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print the store's own document
    #[arg(long)]
    json: bool,
    /// Stop the background download of all images until `--resume`
    #[arg(long, conflicts_with = "resume")]
    pause: bool,
    /// Go on with it
    #[arg(long)]
    resume: bool,
}

pub(super) async fn run(args: &Args, config: &Config) -> anyhow::Result<ExitCode> {
    let client = client(config)?;
    if args.pause || args.resume {
        client.pause_background(args.pause).await?;
    }
    let status = client.status().await?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&status)?);
    } else {
        print!("{}", text(&status));
    }
    Ok(ExitCode::SUCCESS)
}

fn text(status: &Status) -> String {
    let background = match (status.background, status.background_paused) {
        (false, _) => "off",
        (true, true) => "paused",
        (true, false) => "on",
    };
    let mut text = format!(
        "forelayer {} · up {} s · witness {} · background {background}\nadditionallayerstores = [\"{}:ref\"]\n",
        status.version,
        status.uptime_seconds,
        if status.witness {
            "connected"
        } else {
            "not connected: starts are not recorded"
        },
        status.store.display(),
    );
    if status.images.is_empty() {
        text.push_str("no images yet\n");
    }
    for image in &status.images {
        let (present, all) = image.bytes();
        let percent = if all == 0 {
            100.0
        } else {
            present as f64 * 100.0 / all as f64
        };
        text.push_str(&format!(
            "{}  {} layer{}  {} of {} here ({percent:.1} %)\n",
            image.reference,
            image.layers.len(),
            if image.layers.len() == 1 { "" } else { "s" },
            human(present),
            human(all),
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use forelayer::{
        control::{ImageStatus, LayerStatus},
        digest::Digest,
        format::LayerFormat,
    };

    use super::*;

    #[test]
    fn the_text_says_how_much_is_here() {
        let layer = LayerStatus {
            blob: Digest::of(b"b"),
            toc: Digest::of(b"t"),
            format: LayerFormat::Estargz,
            bound: true,
            slot: 1,
            chunks: 4,
            present_chunks: 1,
            bytes: 4096,
            present_bytes: 1024,
        };
        let mut status = Status {
            version: "1".to_owned(),
            uptime_seconds: 5,
            store: "/s".into(),
            witness: false,
            background: true,
            background_paused: true,
            images: Vec::new(),
        };
        assert!(text(&status).contains("no images yet"));
        status.images.push(ImageStatus {
            reference: "a/b:c".to_owned(),
            layers: vec![layer.clone(), layer],
        });
        let text = text(&status);
        assert!(
            text.contains("a/b:c  2 layers  2.00 KiB of 8.00 KiB here (25.0 %)"),
            "{text}"
        );
        assert!(
            text.contains("background paused") && text.contains("\"/s:ref\""),
            "{text}"
        );
    }
}
