//! What is in a volume that shows objects of the API, fields of the pod, or tokens.

use std::collections::{BTreeMap, BTreeSet};

use super::projection::ProjectedFile;
use crate::environment::{self, Sources};
use crate::pod::{DownwardVolume, KeyToPath, Pod, Projection, TokenProjection, Volume};

/// Mode of projected files where nobody says (the API's default).
const DEFAULT_MODE: u32 = 0o644;
/// Mode of a token that some user or group of the pod's own can read (kubelet's).
const TOKEN_MODE: u32 = 0o600;
/// How long a token is good where nobody says, seconds (the API's default).
const TOKEN_LIFE_S: i64 = 3_600;

/// A token that a pod's volumes show: for whom, and for how many seconds.
pub type TokenRequest = (String, i64);

/// The ConfigMaps and Secrets that a pod's volumes name.
pub fn references(pod: &Pod) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut config_maps, mut secrets) = (BTreeSet::new(), BTreeSet::new());
    for volume in &pod.spec.volumes {
        config_maps.extend(volume.config_map.iter().map(|source| source.name.clone()));
        secrets.extend(volume.secret.iter().map(|source| source.secret_name.clone()));
    }
    for source in projections(pod) {
        config_maps.extend(source.config_map.iter().map(|source| source.name.clone()));
        secrets.extend(source.secret.iter().map(|source| source.name.clone()));
    }
    (config_maps, secrets)
}

/// The tokens that a pod's volumes show.
pub fn token_requests(pod: &Pod) -> BTreeSet<TokenRequest> {
    projections(pod).filter_map(|source| source.service_account_token.as_ref()).map(asked).collect()
}

/// Whether any volume shows what may change.
pub fn are_projected(pod: &Pod) -> bool {
    pod.spec.volumes.iter().any(is_projected)
}

/// Whether a volume's files come from elsewhere: containers cannot write them.
pub fn is_projected(volume: &Volume) -> bool {
    volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.downward_api.is_some()
        || volume.projected.is_some()
}

/// The files of a volume.
///
/// # Errors
/// The kubelet's words, and for a kind of volume that there is not.
pub fn of(pod: &Pod, volume: &Volume, sources: &Sources) -> Result<Vec<ProjectedFile>, String> {
    let source = Source { pod, sources };
    if let Some(volume) = &volume.config_map {
        let mode = volume.default_mode.unwrap_or(DEFAULT_MODE);
        return source.config_map(&volume.name, &volume.items, volume.optional, mode);
    }
    if let Some(volume) = &volume.secret {
        let mode = volume.default_mode.unwrap_or(DEFAULT_MODE);
        return source.secret(&volume.secret_name, &volume.items, volume.optional, mode);
    }
    if let Some(volume) = &volume.downward_api {
        return source.downward(volume, volume.default_mode.unwrap_or(DEFAULT_MODE));
    }
    let Some(volume) = &volume.projected else {
        return Err("its type is not supported by this node: use emptyDir, configMap, secret, \
                    downwardAPI, projected, hostPath or persistentVolumeClaim"
            .into());
    };
    let mode = volume.default_mode.unwrap_or(DEFAULT_MODE);
    let mut files = BTreeMap::new();
    for projection in &volume.sources {
        // Of two files of one path the later counts.
        let found = source.projection(projection, mode)?;
        files.extend(found.into_iter().map(|file| (file.path.clone(), file)));
    }
    Ok(files.into_values().collect())
}

fn projections(pod: &Pod) -> impl Iterator<Item = &Projection> {
    let volumes = pod.spec.volumes.iter().filter_map(|volume| volume.projected.as_ref());
    volumes.flat_map(|volume| &volume.sources)
}

fn asked(source: &TokenProjection) -> TokenRequest {
    (source.audience.clone(), source.expiration_seconds.unwrap_or(TOKEN_LIFE_S))
}

/// What the files of a pod's volumes are made from.
struct Source<'a> {
    pod: &'a Pod,
    sources: &'a Sources,
}

impl Source<'_> {
    fn projection(&self, source: &Projection, mode: u32) -> Result<Vec<ProjectedFile>, String> {
        if let Some(source) = &source.config_map {
            return self.config_map(&source.name, &source.items, source.optional, mode);
        }
        if let Some(source) = &source.secret {
            return self.secret(&source.name, &source.items, source.optional, mode);
        }
        if let Some(source) = &source.downward_api {
            return self.downward(source, mode);
        }
        match &source.service_account_token {
            Some(source) => self.token(source, mode).map(|file| vec![file]),
            None => Err("a source of this projected volume is not supported by this node: use \
                         configMap, secret, downwardAPI or serviceAccountToken"
                .into()),
        }
    }

    fn config_map(
        &self,
        name: &str,
        items: &[KeyToPath],
        optional: bool,
        mode: u32,
    ) -> Result<Vec<ProjectedFile>, String> {
        let data = environment::find("configmap", &self.sources.config_maps, name, optional)?;
        select(name, data, items, optional, mode)
    }

    fn secret(
        &self,
        name: &str,
        items: &[KeyToPath],
        optional: bool,
        mode: u32,
    ) -> Result<Vec<ProjectedFile>, String> {
        let data = environment::find("secret", &self.sources.secrets, name, optional)?;
        select(name, data, items, optional, mode)
    }

    fn downward(&self, volume: &DownwardVolume, mode: u32) -> Result<Vec<ProjectedFile>, String> {
        let mut files = Vec::new();
        for item in &volume.items {
            let value = match (&item.field_ref, &item.resource_field_ref) {
                (Some(field), _) => environment::field(self.pod, field, self.sources)?,
                (None, Some(resource)) => {
                    environment::resource(self.pod, None, resource, self.sources)?
                }
                (None, None) => return Err(format!("{} has no source", item.path)),
            };
            files.push(file(&item.path, value.into_bytes(), item.mode.unwrap_or(mode)));
        }
        Ok(files)
    }

    /// A token is for the pod's own user or group alone, where it has one.
    fn token(&self, source: &TokenProjection, mode: u32) -> Result<ProjectedFile, String> {
        let token = self.sources.tokens.get(&asked(source));
        let token = token.ok_or_else(|| format!("no token was fetched for {}", source.path))?;
        let owner = common_user(self.pod);
        let has_reader = owner.is_some() || self.pod.spec.security_context.fs_group.is_some();
        let mode = if has_reader { TOKEN_MODE } else { mode };
        Ok(ProjectedFile { owner, ..file(&source.path, token.clone().into_bytes(), mode) })
    }
}

/// The user that all containers of a pod run as, where it says so.
fn common_user(pod: &Pod) -> Option<u32> {
    let shared = pod.spec.security_context.run_as_user;
    let mut users =
        pod.all_containers().map(|container| container.security_context.run_as_user.or(shared));
    let first = users.next()??;
    users.all(|user| user == Some(first)).then_some(first)
}

fn file(path: &str, content: Vec<u8>, mode: u32) -> ProjectedFile {
    ProjectedFile { path: path.to_owned(), content, mode, owner: None }
}

fn select(
    name: &str,
    data: Option<&BTreeMap<String, Vec<u8>>>,
    items: &[KeyToPath],
    optional: bool,
    mode: u32,
) -> Result<Vec<ProjectedFile>, String> {
    let Some(data) = data else { return Ok(Vec::new()) };
    if items.is_empty() {
        return Ok(data.iter().map(|(key, value)| file(key, value.clone(), mode)).collect());
    }
    let mut files = Vec::new();
    for item in items {
        match data.get(&item.key) {
            Some(value) => {
                files.push(file(&item.path, value.clone(), item.mode.unwrap_or(mode)));
            }
            None if optional => {}
            None => return Err(format!("references non-existent key {:?} of {name}", item.key)),
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(security: Value, volume: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "labels": {"app": "web"}},
            "spec": {
                "securityContext": security,
                "containers": [{"name": "a", "resources": {"limits": {"memory": "3Mi"}}},
                               {"name": "b", "securityContext": {"runAsUser": 7}}],
                "volumes": [volume],
            }
        }))
        .expect("a pod")
    }

    fn sources() -> Sources {
        let data = |key: &str, value: &str| Some([(key.into(), value.into())].into());
        Sources {
            config_maps: [("root".into(), data("ca.crt", "CA"))].into(),
            secrets: [("keys".into(), data("key", "hidden"))].into(),
            tokens: [((String::new(), 3607), "header.claims.signature".into())].into(),
            ..Sources::default()
        }
    }

    fn listed(pod: &Pod) -> Vec<(String, String, u32, Option<u32>)> {
        let files = of(pod, &pod.spec.volumes[0], &sources()).expect("files");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        let row = |file: ProjectedFile| (file.path, text(file.content), file.mode, file.owner);
        files.into_iter().map(row).collect()
    }

    fn access() -> Value {
        json!({"name": "access", "projected": {"defaultMode": 0o644, "sources": [
            {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
            {"configMap": {"name": "root", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [
                {"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}},
                {"path": "memory", "mode": 0o600, "resourceFieldRef":
                    {"containerName": "a", "resource": "limits.memory", "divisor": "1Mi"}}]}},
            {"secret": {"name": "keys"}},
        ]}})
    }

    #[test]
    fn a_projected_volume_holds_the_files_of_all_its_sources() {
        let pod = pod(json!({}), access());
        let row = |path: &str, text: &str, mode| (path.to_owned(), text.to_owned(), mode, None);
        let expected = [
            row("ca.crt", "CA", 0o644),
            row("key", "hidden", 0o644),
            row("memory", "3", 0o600),
            row("namespace", "n", 0o644),
            row("token", "header.claims.signature", 0o644),
        ];
        assert_eq!(listed(&pod), expected);
        let (config_maps, secrets) = references(&pod);
        assert!(config_maps.contains("root") && secrets.contains("keys"));
        assert_eq!(token_requests(&pod), [(String::new(), 3607)].into());
        assert!(are_projected(&pod));
    }

    #[test]
    fn a_token_is_for_those_who_run_the_pod() {
        let token = |security| {
            let files = listed(&pod(security, access()));
            files.last().map(|(_, _, mode, owner)| (*mode, *owner))
        };
        assert_eq!(token(json!({})), Some((0o644, None)), "two users, one of them unknown");
        assert_eq!(token(json!({"runAsUser": 7})), Some((0o600, Some(7))));
        assert_eq!(token(json!({"runAsUser": 8})), Some((0o644, None)), "two users");
        assert_eq!(token(json!({"fsGroup": 9})), Some((0o600, None)));
    }

    #[test]
    fn what_is_missing_is_named_as_the_kubelet_names_it() {
        let fault = |volume: Value| {
            let pod = pod(json!({}), volume);
            of(&pod, &pod.spec.volumes[0], &sources()).expect_err("a fault")
        };
        let map = |body: Value| json!({"name": "v", "configMap": body});
        assert_eq!(fault(map(json!({"name": "none"}))), "configmap \"none\" not found");
        let item = json!({"name": "root", "items": [{"key": "x", "path": "x"}]});
        assert_eq!(fault(map(item)), "references non-existent key \"x\" of root");
        assert!(fault(json!({"name": "v", "nfs": {}})).contains("not supported"));
        let bundle = json!({"name": "v", "projected": {"sources": [{"clusterTrustBundle": {}}]}});
        assert!(fault(bundle).contains("not supported"));
    }
}
