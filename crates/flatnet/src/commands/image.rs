//! `flatnet image`: what the containers of a cluster on this machine can be made of.

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use runtime::images::{Image, Reference, Store, load};

use super::{ClusterName, require_root};
use crate::output::{Format, print, table};

/// Arguments of `flatnet image`.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  docker save shop/web:1 > web.tar && flatnet image load web.tar\n  flatnet image load ./oci-layout --image-name shop.test/web:1\n  flatnet image list --output json\n  flatnet image remove shop/web:1"
)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Load images from a file of `docker save`, or an OCI layout as directory or archive.
    Load(LoadArguments),
    /// List the images that were loaded or pulled.
    List(ListArguments),
    /// Remove images that no container uses.
    Remove(RemoveArguments),
}

#[derive(clap::Args)]
struct LoadArguments {
    #[command(flatten)]
    cluster: ClusterName,
    /// The file or directory. It may be compressed by gzip or zstd.
    file: PathBuf,
    /// A name for an image that has none, or one more.
    #[arg(long, value_name = "NAME")]
    image_name: Option<String>,
    /// How to print.
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
}

#[derive(clap::Args)]
struct ListArguments {
    #[command(flatten)]
    cluster: ClusterName,
    /// How to print.
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
}

#[derive(clap::Args)]
struct RemoveArguments {
    #[command(flatten)]
    cluster: ClusterName,
    /// Names or ids.
    #[arg(required = true)]
    images: Vec<String>,
    /// How to print.
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
}

/// Loads, lists or removes.
///
/// # Errors
/// What is wrong with the file or name, or that the cluster or root is missing.
pub fn run(arguments: Arguments) -> Result<()> {
    match arguments.action {
        Action::Load(arguments) => {
            let store = open(&arguments.cluster)?;
            let name = arguments.image_name.as_deref().map(Reference::parse).transpose();
            let name = name.map_err(|error| {
                anyhow!("--image-name {}: {error}", arguments.image_name.unwrap_or_default())
            })?;
            let images = load(&store, &arguments.file, name.as_ref());
            let images = images
                .map_err(anyhow::Error::msg)
                .with_context(|| format!("loading {}", arguments.file.display()))?;
            print(arguments.output, &images, || lines("loaded", &images))
        }
        Action::List(arguments) => {
            let images = open(&arguments.cluster)?.list();
            print(arguments.output, &images, || list(&images))
        }
        Action::Remove(arguments) => {
            let store = open(&arguments.cluster)?;
            let remove = |name: &String| store.remove(name).map_err(anyhow::Error::msg);
            let images: Vec<Image> = arguments.images.iter().map(remove).collect::<Result<_>>()?;
            print(arguments.output, &images, || {
                arguments.images.iter().map(|name| format!("removed {name}\n")).collect()
            })
        }
    }
}

fn open(cluster: &ClusterName) -> Result<Store> {
    require_root("reading a cluster's images")?;
    let (paths, _) = cluster.load()?;
    Store::open(paths.images()).map_err(anyhow::Error::msg)
}

fn lines(what: &str, images: &[Image]) -> String {
    let names = images.iter().flat_map(|image| &image.names);
    names.map(|name| format!("{what} {name}\n")).collect()
}

fn list(images: &[Image]) -> String {
    let mut rows: Vec<[String; 4]> = Vec::new();
    for image in images {
        let id = image.id.digits().chars().take(12).collect::<String>();
        let size = format!("{:.1} MB", image.size_bytes as f64 / 1e6);
        let origin = if image.pulled { "pulled" } else { "loaded" };
        let names = image.names.iter().chain(&image.repository_digests);
        for name in names.take(image.names.len().max(1)) {
            rows.push([name.clone(), id.clone(), size.clone(), origin.to_owned()]);
        }
    }
    rows.sort();
    table(["NAME", "ID", "SIZE", "ORIGIN"], &rows)
}
