//! Whether a container's image must be pulled, by its `imagePullPolicy`.

use std::time::Instant;

use crate::images::{self, Chosen, Credentials, Reference, Settings};
use crate::machine::{ImageFailure, Note};
use crate::pod::Container;
use crate::tasks::Task;

/// Most credentials that are tried for one image.
const MAX_CREDENTIALS: usize = 8;

/// What to do for an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decision {
    /// The one that is here will do.
    Use,
    /// Ask its registry.
    Pull,
    /// It is not here, and no registry may be asked.
    Refuse,
}

/// The kubelet's rule; but an image of this machine has no registry that could be asked.
fn decide(policy: &str, is_here: bool, is_of_this_machine: bool) -> Decision {
    match (policy, is_here) {
        (_, true) if is_of_this_machine => Decision::Use,
        ("Always", _) => Decision::Pull,
        (_, true) => Decision::Use,
        ("Never", false) => Decision::Refuse,
        (_, false) => Decision::Pull,
    }
}

impl Task {
    /// The image of a container, pulled where that is needed.
    ///
    /// # Errors
    /// In the kubelet's words.
    pub async fn image(&self, container: &Container) -> Result<Chosen, ImageFailure> {
        let text = &container.image;
        let reference = Reference::parse(text).map_err(|error| {
            ImageFailure::Name(format!(
                "Failed to apply default image tag {text:?}: couldn't parse image name {text:?}: \
                 {error}"
            ))
        })?;
        let images = &self.context.images;
        let found = images.find(&reference).map_err(ImageFailure::Pull)?;
        let own = reference.is_of_this_machine();
        match (decide(&container.image_pull_policy, found.is_some(), own), found) {
            (Decision::Use, Some(found)) => {
                let message = format!("Container image {text:?} already present on machine");
                self.note_image("Pulled", message, container);
                Ok(found)
            }
            (Decision::Refuse, _) => Err(ImageFailure::Never(format!(
                "Container image {text:?} is not present with pull policy of Never"
            ))),
            (Decision::Use | Decision::Pull, _) => self.pull(container, &reference).await,
        }
    }

    async fn pull(
        &self,
        container: &Container,
        reference: &Reference,
    ) -> Result<Chosen, ImageFailure> {
        let text = &container.image;
        if reference.is_of_this_machine() {
            return Err(ImageFailure::Pull(format!(
                "{reference} is not on this machine, and no registry has images of localhost/: \
                 load it by `flatnet image load`"
            )));
        }
        self.note_image("Pulling", format!("Pulling image {text:?}"), container);
        let waiting = Instant::now();
        let _permit = self.context.pulls.acquire().await;
        let started = Instant::now();
        let failed = ImageFailure::Pull;
        let settings = Settings::read(&self.context.options.registries).map_err(failed)?;
        let credentials = self.credentials(reference).await;
        let images = &self.context.images;
        let image = images::pull(&images.store, reference, &settings, &credentials).await;
        let image = image.map_err(failed)?;
        let seconds = |since: Instant| format!("{:.3}s", since.elapsed().as_secs_f64());
        let message = format!(
            "Successfully pulled image {text:?} in {} ({} including waiting). Image size: {} bytes.",
            seconds(started),
            seconds(waiting),
            image.size_bytes
        );
        self.note_image("Pulled", message, container);
        images.chosen(image).map_err(failed)
    }

    /// What the pod's `imagePullSecrets` have for a registry. One that is missing is passed over:
    /// the registry may need none.
    async fn credentials(&self, reference: &Reference) -> Vec<Credentials> {
        let mut all = Vec::new();
        for secret in &self.pod.spec.image_pull_secrets {
            match self.data("secrets", &secret.name).await {
                Ok(data) => all.extend(Credentials::find(&data, reference)),
                Err(error) => {
                    let (pod, name) = (&self.pod.metadata.name, &secret.name);
                    tracing::warn!(pod, "imagePullSecret {name} was not read: {}", error.message);
                }
            }
        }
        all.truncate(MAX_CREDENTIALS);
        all
    }

    fn note_image(&self, reason: &'static str, message: String, container: &Container) {
        let note = Note::container(false, reason, message, &container.name);
        self.context.events.record(&self.pod, note);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_the_kubelets() {
        let cases = [
            ("Always", true, Decision::Pull),
            ("Always", false, Decision::Pull),
            ("IfNotPresent", true, Decision::Use),
            ("IfNotPresent", false, Decision::Pull),
            ("Never", true, Decision::Use),
            ("Never", false, Decision::Refuse),
            ("", true, Decision::Use),
        ];
        for (policy, is_here, decision) in cases {
            assert_eq!(decide(policy, is_here, false), decision, "{policy} {is_here}");
        }
        assert_eq!(decide("Always", true, true), Decision::Use);
        assert_eq!(decide("Always", false, true), Decision::Pull);
    }
}
