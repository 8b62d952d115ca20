//! The REST face over real TLS: what clients see.

mod support;

use client::{ClientError, DeleteOptions, List, ListOptions, PatchKind, ResourcePath};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use serde_json::{Value, json};
use support::{DEADLINE, Scratch, Server, endpoint, start, within};

fn config_maps() -> ResourcePath {
    ResourcePath::new("v1", "configmaps").namespace("default")
}

fn config_map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "1"}})
}

/// One request with headers of the test's choice: status, headers, body.
async fn ask(
    server: &Server,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> (StatusCode, hyper::HeaderMap, Bytes) {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(Bytes::from(body.to_owned()))).expect("a request");
    let response = within("an answer", endpoint(server).send_once(request)).await;
    let (head, body) = response.expect("an answer").into_parts();
    let body = within("a body", body.collect()).await.expect("a body").to_bytes();
    (head.status, head.headers, body)
}

fn json_of(body: &[u8]) -> Value {
    serde_json::from_slice(body).expect("JSON")
}

/// What client-go asks for by default since 1.32.
#[tokio::test]
async fn objects_lists_and_refusals_come_as_protobuf_where_it_is_preferred() {
    let scratch = Scratch::new("protobuf-answers");
    let server = start(&scratch.0, 0).await;
    let accept = [("accept", "application/vnd.kubernetes.protobuf,application/json")];
    let json_type = [("accept", "application/json")];
    let maps = "/api/v1/namespaces/default/configmaps";
    let one = "/api/v1/namespaces/default/services/kubernetes";
    let made = ask(&server, Method::POST, maps, &accept, &config_map("web").to_string()).await;
    assert_eq!(made.0, StatusCode::CREATED);
    let paths = [one, maps, "/api/v1/nodes", "/api/v1/namespaces/default/pods/gone"];
    for path in paths {
        let (_, headers, bytes) = ask(&server, Method::GET, path, &accept, "").await;
        assert_eq!(headers["content-type"], "application/vnd.kubernetes.protobuf", "{path}");
        let mut message = schema::protobuf::decode(&bytes).expect("protobuf");
        let (_, _, text) = ask(&server, Method::GET, path, &json_type, "").await;
        let mut expected = json_of(&text);
        // What is empty is nothing there.
        for value in [&mut message, &mut expected] {
            strip_empty(value);
        }
        assert_eq!(message, expected, "{path}");
    }
    let table = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let (_, headers, _) = ask(&server, Method::GET, maps, &table, "").await;
    assert_eq!(headers["content-type"], "application/json", "Tables are JSON");
    server.running.stop().await;
}

fn strip_empty(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.values_mut().for_each(strip_empty);
            members.retain(|_, member| *member != json!({}) && *member != json!([]));
        }
        Value::Array(items) => items.iter_mut().for_each(strip_empty),
        _ => {}
    }
}

#[tokio::test]
async fn an_object_lives_from_create_to_delete() {
    let scratch = Scratch::new("rest");
    let server = start(&scratch.0, 0).await;
    let path = config_maps().name("web");
    let created: Value =
        server.client.create(&config_maps(), &config_map("web")).await.expect("created");
    assert_eq!(created["metadata"]["namespace"], "default");
    let again = server.client.create::<_, Value>(&config_maps(), &config_map("web")).await;
    assert!(again.expect_err("a clash").is_already_exists());

    let patch = json!({"data": {"b": "2"}});
    let patched: Value =
        server.client.patch(&path, PatchKind::Merge, &patch).await.expect("patched");
    assert_eq!(patched["data"], json!({"a": "1", "b": "2"}));
    let stale = server.client.update::<_, Value>(&path, &created).await;
    assert!(stale.expect_err("a stale version").is_conflict());

    let listed: List<Value> =
        server.client.list(&config_maps(), &ListOptions::default()).await.expect("listed");
    assert_eq!(listed.items.len(), 1);
    assert!(listed.items[0].get("kind").is_none(), "items carry no kind");
    let gone = server.client.delete(&path, &DeleteOptions::default()).await.expect("deleted");
    assert_eq!(gone["status"], "Success");
    assert!(server.client.get::<Value>(&path).await.expect_err("gone").is_not_found());
    server.running.stop().await;
}

#[tokio::test]
async fn the_cluster_has_its_own_objects_from_the_start() {
    let scratch = Scratch::new("bootstrap");
    let server = start(&scratch.0, 0).await;
    let get = async |path: ResourcePath| server.client.get::<Value>(&path).await.expect("there");
    for namespace in ["default", "kube-system", "kube-public", "kube-node-lease"] {
        let found = get(ResourcePath::new("v1", "namespaces").name(namespace)).await;
        assert_eq!(found["status"]["phase"], "Active");
    }
    let services = ResourcePath::new("v1", "services");
    let kubernetes = get(services.clone().namespace("default").name("kubernetes")).await;
    assert_eq!(kubernetes["spec"]["clusterIP"], "10.96.0.1");
    let dns = get(services.namespace("kube-system").name("kube-dns")).await;
    assert_eq!(dns["spec"]["clusterIP"], "10.96.0.10");
    let slices = ResourcePath::new("discovery.k8s.io/v1", "endpointslices").namespace("default");
    let slice = get(slices.clone().name("kubernetes")).await;
    assert_eq!(slice["endpoints"][0]["addresses"], json!(["172.30.0.1"]));
    assert_eq!(slice["ports"][0]["port"], 6443);
    server.running.stop().await;
}

#[tokio::test]
async fn without_a_client_certificate_only_probes_and_the_version_are_served() {
    let scratch = Scratch::new("anonymous");
    let server = start(&scratch.0, 0).await;
    // curl stands for any client without credentials.
    let curl = async |path: &str| {
        let output = tokio::process::Command::new("curl")
            .args(["--silent", "--max-time", "20", "--write-out", "\n%{http_code}", "--cacert"])
            .arg(&server.pki.authority)
            .arg(format!("https://{}{path}", server.address))
            .output();
        let output = output.await.expect("curl is installed (apt-get install curl)");
        let text = String::from_utf8(output.stdout).expect("text");
        let (body, code) = text.rsplit_once('\n').expect("a code");
        (code.to_owned(), body.to_owned())
    };
    let checks = "[+]ping ok\n[+]etcd ok\nreadyz check passed\n";
    for (path, text) in [
        ("/livez", "ok"),
        ("/readyz", "ok"),
        ("/healthz", "ok"),
        ("/healthz/etcd", "ok"),
        ("/readyz?verbose", checks),
    ] {
        assert_eq!(curl(path).await, ("200".to_owned(), text.to_owned()), "{path}");
    }
    assert_eq!(curl("/readyz/nope").await.0, "404");
    let (code, version) = curl("/version").await;
    assert_eq!((code.as_str(), json_of(version.as_bytes())["major"].as_str()), ("200", Some("1")));
    for path in ["/api/v1/secrets", "/apis", "/", "/openapi/v3", "/openid/v1/jwks", "/nope"] {
        let (code, body) = curl(path).await;
        assert_eq!(code, "401", "{path}");
        assert_eq!(json_of(body.as_bytes())["reason"], "Unauthorized", "{path}");
    }
    server.running.stop().await;
}

#[tokio::test]
async fn a_certificate_of_another_authority_opens_no_connection() {
    let scratch = Scratch::new("stranger");
    let stranger = Scratch::new("stranger-pki");
    let server = start(&scratch.0, 0).await;
    let other = support::make_pki(&stranger.0);
    let read = |path| std::fs::read(path).expect("a file");
    let identity = client::Identity::from_pem(
        &read(&server.pki.authority),
        &read(&other.admin.certificate),
        &read(&other.admin.key),
        "test",
    );
    let endpoint = client::Endpoint::new(
        &format!("https://{}", server.address),
        &identity.expect("an identity"),
    );
    let request = Request::builder().uri("/api/v1/secrets").body(Full::default());
    let refused = endpoint.expect("an endpoint").send_once(request.expect("a request")).await;
    assert!(matches!(refused, Err(ClientError::Transport { .. })), "{refused:?}");
    server.running.stop().await;
}

#[tokio::test]
async fn refusals_are_the_real_servers() {
    let scratch = Scratch::new("refusals");
    let server = start(&scratch.0, 0).await;
    let maps = "/api/v1/namespaces/default/configmaps";
    const JSON_TYPE: &[(&str, &str)] = &[("content-type", "application/json")];
    type Case = (
        Method,
        &'static str,
        &'static [(&'static str, &'static str)],
        &'static str,
        u16,
        &'static str,
    );
    let cases: [Case; 11] = [
        (Method::GET, "/nope", &[], "", 404, "the server could not find the requested resource"),
        (
            Method::GET,
            "/api/v1/namespaces/default/configmaps/x",
            &[],
            "",
            404,
            "configmaps \"x\" not found",
        ),
        (
            Method::POST,
            "/api/v1/namespaces/default/configmaps/x",
            &[],
            "",
            405,
            "the server does not allow this method on the requested resource",
        ),
        (
            Method::PUT,
            "/version",
            &[],
            "",
            405,
            "the server does not allow this method on the requested resource",
        ),
        (
            Method::POST,
            "/api/v1/configmaps",
            JSON_TYPE,
            "{}",
            405,
            "the server does not allow this method on the requested resource",
        ),
        (Method::GET, maps, &[("accept", "image/png")], "", 406, "406: Not Acceptable"),
        (
            Method::POST,
            maps,
            &[("content-type", "text/xml")],
            "<a/>",
            415,
            "the body of the request was in an unknown format",
        ),
        (
            Method::PATCH,
            "/api/v1/namespaces/default/configmaps/x",
            JSON_TYPE,
            "{}",
            415,
            "415: Unsupported Media Type",
        ),
        (
            Method::PATCH,
            "/api/v1/namespaces/default/configmaps/x",
            &[("content-type", "application/apply-patch+yaml")],
            "{}",
            422,
            "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for \
             apply patch",
        ),
        (
            Method::POST,
            maps,
            JSON_TYPE,
            "{bad",
            400,
            "the object provided is unrecognized (must be of type ConfigMap)",
        ),
        (
            Method::GET,
            "/api/v1/configmaps?labelSelector=a%3D%3D%3Db",
            &[],
            "",
            400,
            "unable to parse requirement: found '=', expected: identifier",
        ),
    ];
    for (method, path, headers, body, code, message) in cases {
        let (status, _, answer) = ask(&server, method.clone(), path, headers, body).await;
        let answer = json_of(&answer);
        assert_eq!(status.as_u16(), code, "{method} {path}: {answer}");
        assert_eq!(answer["code"], code, "{method} {path}: {answer}");
        let text = answer["message"].as_str().expect("a message");
        assert!(text.starts_with(message), "{method} {path}: {text}");
    }
    server.running.stop().await;
}

#[tokio::test]
async fn a_body_above_the_limit_is_refused_and_the_server_goes_on() {
    let scratch = Scratch::new("large");
    let server = start(&scratch.0, 0).await;
    let mut large = config_map("large");
    large["data"]["a"] = "x".repeat(4 << 20).into();
    let refused = server.client.create::<_, Value>(&config_maps(), &large).await;
    // The server may cut the connection before the client has sent everything.
    match refused.expect_err("too large") {
        ClientError::Api(status) => assert_eq!(status.code, 413),
        ClientError::Transport { .. } => {}
        other => panic!("{other}"),
    }
    let fine = server.client.create::<_, Value>(&config_maps(), &config_map("small")).await;
    fine.expect("the server goes on");
    server.running.stop().await;
}

#[tokio::test]
async fn bodies_come_as_json_yaml_or_without_a_type() {
    let scratch = Scratch::new("bodies");
    let server = start(&scratch.0, 0).await;
    let maps = "/api/v1/namespaces/default/configmaps/";
    let object = config_map("one").to_string();
    let (status, _, _) = ask(&server, Method::POST, maps, &[], &object).await;
    assert_eq!(status, StatusCode::CREATED);
    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: two}\ndata: {a: '1'}\n";
    let headers = [("content-type", "application/yaml"), ("accept", "application/yaml")];
    let (status, headers, body) = ask(&server, Method::POST, maps, &headers, yaml).await;
    assert_eq!(status, StatusCode::CREATED);
    assert_eq!(headers["content-type"], "application/yaml");
    assert!(String::from_utf8_lossy(&body).contains("name: two"));
    server.running.stop().await;
}

#[tokio::test]
async fn lists_and_objects_come_as_tables_when_asked() {
    let scratch = Scratch::new("tables");
    let server = start(&scratch.0, 0).await;
    let accept = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json")];
    let services = "/api/v1/namespaces/default/services";
    let (_, _, body) = ask(&server, Method::GET, services, &accept, "").await;
    let table = json_of(&body);
    assert_eq!((&table["kind"], &table["apiVersion"]), (&json!("Table"), &json!("meta.k8s.io/v1")));
    assert_eq!(table["rows"][0]["cells"][0], "kubernetes");
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let (_, _, body) =
        ask(&server, Method::GET, &format!("{services}/kubernetes"), &accept, "").await;
    assert_eq!(json_of(&body)["kind"], "Table");
    let wrong = format!("{services}?includeObject=All");
    assert_eq!(ask(&server, Method::GET, &wrong, &accept, "").await.0, StatusCode::BAD_REQUEST);
    server.running.stop().await;
}

#[tokio::test]
async fn discovery_and_openapi_satisfy_every_client() {
    let scratch = Scratch::new("discovery");
    let server = start(&scratch.0, 0).await;
    let get = async |path: &str, headers: &[(&str, &str)]| {
        ask(&server, Method::GET, path, headers, "").await
    };
    let legacy = [("accept", "application/json, */*")];
    assert_eq!(json_of(&get("/api", &legacy).await.2)["kind"], "APIVersions");
    let groups = json_of(&get("/apis/", &legacy).await.2);
    assert_eq!(groups["kind"], "APIGroupList");
    for group in groups["groups"].as_array().expect("groups") {
        let name = group["name"].as_str().expect("a name");
        assert_eq!(json_of(&get(&format!("/apis/{name}"), &legacy).await.2)["kind"], "APIGroup");
        let path = format!("/apis/{}", group["versions"][0]["groupVersion"].as_str().expect("one"));
        assert_eq!(json_of(&get(&path, &legacy).await.2)["kind"], "APIResourceList", "{path}");
    }
    assert_eq!(json_of(&get("/api/v1", &legacy).await.2)["kind"], "APIResourceList");
    assert_eq!(get("/apis/nope/v1", &legacy).await.0, StatusCode::NOT_FOUND);

    let aggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    for path in ["/api", "/apis"] {
        let (_, headers, body) = get(path, &[("accept", aggregated)]).await;
        assert_eq!(headers["content-type"], aggregated, "{path}");
        assert_eq!(json_of(&body)["kind"], "APIGroupDiscoveryList");
        let etag = headers["etag"].to_str().expect("text").to_owned();
        let again = [("accept", aggregated), ("if-none-match", etag.as_str())];
        let (status, _, body) = get(path, &again).await;
        assert_eq!((status, body.len()), (StatusCode::NOT_MODIFIED, 0), "{path}");
    }

    // As kubectl 1.20 asks for it; with the `@` in an answer it could not read that.
    let protobuf = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
    for (accept, expected, begin) in [
        (protobuf, "application/com.github.proto-openapi.spec.v2.v1.0+protobuf", "\n\u{3}2.0"),
        ("application/json", "application/json", "{\"swagger\":\"2.0\""),
    ] {
        let (status, headers, body) = get("/openapi/v2", &[("accept", accept)]).await;
        assert_eq!(
            (status, &headers["content-type"]),
            (StatusCode::OK, &expected.parse().expect("a type"))
        );
        assert!(body.starts_with(begin.as_bytes()), "{accept}");
        let etag = headers["etag"].to_str().expect("text").to_owned();
        let again = [("accept", accept), ("if-none-match", etag.as_str())];
        let (status, headers, body) = get("/openapi/v2", &again).await;
        assert_eq!((status, body.len()), (StatusCode::NOT_MODIFIED, 0), "{accept}");
        assert_eq!(headers["etag"], etag.as_str());
    }
    let index = json_of(&get("/openapi/v3", &[]).await.2);
    for (group, entry) in index["paths"].as_object().expect("paths") {
        let url = entry["serverRelativeURL"].as_str().expect("a URL");
        let (status, _, body) = get(url, &[]).await;
        assert_eq!(status, StatusCode::OK, "{group}");
        let document = json_of(&body);
        let paths = document["paths"].as_object().expect("paths");
        let has_validation = paths
            .values()
            .any(|path| path["patch"]["parameters"].to_string().contains("fieldValidation"));
        assert!(has_validation, "{group}");
    }
    server.running.stop().await;
}

#[tokio::test]
async fn warnings_travel_as_headers() {
    let scratch = Scratch::new("warnings");
    let server = start(&scratch.0, 0).await;
    let policy = json!({"metadata": {"name": "deny"}, "spec": {"podSelector": {}}}).to_string();
    let path = "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies";
    let (status, headers, _) = ask(&server, Method::POST, path, &[], &policy).await;
    assert_eq!(status, StatusCode::CREATED);
    let warning = headers["warning"].to_str().expect("text");
    assert!(warning.starts_with("299 - \"") && warning.contains("NetworkPolicy"), "{warning}");
    server.running.stop().await;
}

/// Api-server 1.6, strict decoding: each format of a body, and the default of the server.
#[tokio::test]
async fn fields_are_validated_as_the_client_asks() {
    let scratch = Scratch::new("validation");
    let server = start(&scratch.0, 0).await;
    let maps = "/api/v1/namespaces/default/configmaps";
    let twice = r#"{"metadata": {"name": "one"}, "data": {}, "dat": {}, "data": {"a": "1"}}"#;
    let yaml = "metadata: {name: two}\ndata: {a: '1'}\ndat: {}\n";
    let complaint = "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding \
                     error: unknown field \"dat\"";
    let strict = format!("{maps}?fieldValidation=Strict");
    let headers = [("content-type", "application/yaml")];
    for (headers, body, more) in
        [(&[][..], twice, ", duplicate field \"data\""), (&headers[..], yaml, "")]
    {
        let (status, _, answer) = ask(&server, Method::POST, &strict, headers, body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert_eq!(json_of(&answer)["message"], format!("{complaint}{more}"));
        // The server's default.
        let (status, answered, _) = ask(&server, Method::POST, maps, headers, body).await;
        assert_eq!(status, StatusCode::CREATED);
        let warning = answered["warning"].to_str().expect("text");
        assert_eq!(warning, r#"299 - "unknown field \"dat\"""#);
    }
    let merge = [("content-type", "application/merge-patch+json")];
    let patch = r#"{"data": {"a": "2", "a": "3"}}"#;
    for (directive, expected) in [("Strict", 422), ("Ignore", 200), ("Loose", 422)] {
        let path = format!("{maps}/one?fieldValidation={directive}");
        let (status, answered, body) = ask(&server, Method::PATCH, &path, &merge, patch).await;
        assert_eq!(status, expected, "{directive}");
        assert!(!answered.contains_key("warning"), "{directive}");
        let message = json_of(&body)["message"].as_str().unwrap_or_default().to_owned();
        match directive {
            "Strict" => assert!(message.ends_with("duplicate field \"data.a\""), "{message}"),
            "Loose" => assert!(message.contains("Unsupported value: \"Loose\""), "{message}"),
            _ => assert_eq!(json_of(&body)["data"]["a"], "3"),
        }
    }
    server.running.stop().await;
}

#[tokio::test]
async fn a_dry_run_stores_nothing() {
    let scratch = Scratch::new("dry-run");
    let server = start(&scratch.0, 0).await;
    let maps = "/api/v1/namespaces/default/configmaps?dryRun=All";
    let object = config_map("ghost").to_string();
    assert_eq!(ask(&server, Method::POST, maps, &[], &object).await.0, StatusCode::CREATED);
    let ghost = config_maps().name("ghost");
    assert!(server.client.get::<Value>(&ghost).await.expect_err("absent").is_not_found());
    let _: Value = server.client.create(&config_maps(), &config_map("real")).await.expect("made");
    let body = r#"{"dryRun":["All"]}"#;
    let one = "/api/v1/namespaces/default/configmaps/real";
    assert_eq!(ask(&server, Method::DELETE, one, &[], body).await.0, StatusCode::OK);
    let real = config_maps().name("real");
    server.client.get::<Value>(&real).await.expect("a dry run deletes nothing");
    server.running.stop().await;
}

#[tokio::test]
async fn many_clients_write_at_once_and_every_revision_is_given_once() {
    const WRITERS: usize = 16;
    const WRITES: usize = 20;
    let scratch = Scratch::new("writers");
    let server = start(&scratch.0, 0).await;
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let client = server.client.clone();
        writers.spawn(async move {
            let mut revisions = Vec::new();
            for number in 0..WRITES {
                let object = config_map(&format!("w{writer}-{number}"));
                let made: Value = client.create(&config_maps(), &object).await.expect("created");
                let version = made["metadata"]["resourceVersion"].as_str().expect("a version");
                revisions.push(version.parse::<u64>().expect("a number"));
            }
            revisions
        });
    }
    let revisions: Vec<Vec<u64>> =
        tokio::time::timeout(DEADLINE, writers.join_all()).await.expect("in time");
    assert!(revisions.iter().all(|own| own.is_sorted()), "a writer's own writes are in order");
    let mut all: Vec<u64> = revisions.into_iter().flatten().collect();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), WRITERS * WRITES);
    server.running.stop().await;
}
