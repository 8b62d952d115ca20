//! The messages that are read: what kubectl's `create` commands write. Numbers and names are
//! those of Kubernetes' published `generated.proto` files.

/// One message type.
pub(super) struct Message {
    /// Its name, for errors.
    pub name: &'static str,
    /// What it may hold.
    pub fields: &'static [Field],
}

/// One field of a message.
pub(super) struct Field {
    pub number: u64,
    /// The name in JSON.
    pub name: &'static str,
    pub kind: Kind,
}

/// How a field is written, and when its zero value counts.
pub(super) enum Kind {
    /// A text; empty means absent.
    Text,
    /// A text that is written only when it is set.
    OptionalText,
    /// A list of texts.
    Texts,
    /// A whole number; 0 means absent.
    Number,
    /// A whole number that is written only when it is set.
    OptionalNumber,
    /// A boolean; false means absent.
    Flag,
    /// A boolean that is written only when it is set.
    OptionalFlag,
    /// `IntOrString`.
    NumberOrText,
    /// A map of texts.
    TextMap,
    /// A map of bytes, base64 in JSON.
    BytesMap,
    /// A message.
    One(&'static Message),
    /// A list of messages.
    Many(&'static Message),
    /// What the server sets itself, whatever a client writes.
    Ignored,
}

/// The message of a kind.
pub(super) fn message(api_version: &str, kind: &str) -> Option<&'static Message> {
    Some(match (api_version, kind) {
        ("v1", "ConfigMap") => &CONFIG_MAP,
        ("v1", "Namespace") => &NAMESPACE,
        ("v1", "Secret") => &SECRET,
        ("v1", "Service") => &SERVICE,
        ("v1", "ServiceAccount") => &SERVICE_ACCOUNT,
        ("apps/v1", "Deployment") => &DEPLOYMENT,
        (_, "DeleteOptions") => &DELETE_OPTIONS,
        _ => return None,
    })
}

const fn field(number: u64, name: &'static str, kind: Kind) -> Field {
    Field { number, name, kind }
}

static OBJECT_META: Message = Message {
    name: "ObjectMeta",
    fields: &[
        field(1, "name", Kind::Text),
        field(2, "generateName", Kind::Text),
        field(3, "namespace", Kind::Text),
        field(4, "selfLink", Kind::Ignored),
        field(5, "uid", Kind::Text),
        field(6, "resourceVersion", Kind::Text),
        field(7, "generation", Kind::Ignored),
        field(8, "creationTimestamp", Kind::Ignored),
        field(11, "labels", Kind::TextMap),
        field(12, "annotations", Kind::TextMap),
        field(14, "finalizers", Kind::Texts),
    ],
};

static NAMESPACE: Message = Message {
    name: "Namespace",
    fields: &[
        field(1, "metadata", Kind::One(&OBJECT_META)),
        field(2, "spec", Kind::One(&NAMESPACE_SPEC)),
        field(3, "status", Kind::Ignored),
    ],
};

static NAMESPACE_SPEC: Message =
    Message { name: "NamespaceSpec", fields: &[field(1, "finalizers", Kind::Texts)] };

static CONFIG_MAP: Message = Message {
    name: "ConfigMap",
    fields: &[
        field(1, "metadata", Kind::One(&OBJECT_META)),
        field(2, "data", Kind::TextMap),
        field(3, "binaryData", Kind::BytesMap),
        field(4, "immutable", Kind::OptionalFlag),
    ],
};

static SECRET: Message = Message {
    name: "Secret",
    fields: &[
        field(1, "metadata", Kind::One(&OBJECT_META)),
        field(2, "data", Kind::BytesMap),
        field(3, "type", Kind::Text),
        field(4, "stringData", Kind::TextMap),
        field(5, "immutable", Kind::OptionalFlag),
    ],
};

static SERVICE_ACCOUNT: Message = Message {
    name: "ServiceAccount",
    fields: &[
        field(1, "metadata", Kind::One(&OBJECT_META)),
        field(3, "imagePullSecrets", Kind::Many(&LOCAL_OBJECT_REFERENCE)),
        field(4, "automountServiceAccountToken", Kind::OptionalFlag),
    ],
};

static LOCAL_OBJECT_REFERENCE: Message =
    Message { name: "LocalObjectReference", fields: &[field(1, "name", Kind::Text)] };

static SERVICE: Message = Message {
    name: "Service",
    fields: &[
        field(1, "metadata", Kind::One(&OBJECT_META)),
        field(2, "spec", Kind::One(&SERVICE_SPEC)),
        field(3, "status", Kind::Ignored),
    ],
};

static SERVICE_SPEC: Message = Message {
    name: "ServiceSpec",
    fields: &[
        field(1, "ports", Kind::Many(&SERVICE_PORT)),
        field(2, "selector", Kind::TextMap),
        field(3, "clusterIP", Kind::Text),
        field(4, "type", Kind::Text),
        field(5, "externalIPs", Kind::Texts),
        field(7, "sessionAffinity", Kind::Text),
        field(8, "loadBalancerIP", Kind::Text),
        field(9, "loadBalancerSourceRanges", Kind::Texts),
        field(10, "externalName", Kind::Text),
        field(11, "externalTrafficPolicy", Kind::Text),
        field(12, "healthCheckNodePort", Kind::Number),
        field(13, "publishNotReadyAddresses", Kind::Flag),
        field(17, "ipFamilyPolicy", Kind::OptionalText),
        field(18, "clusterIPs", Kind::Texts),
        field(19, "ipFamilies", Kind::Texts),
        field(20, "allocateLoadBalancerNodePorts", Kind::OptionalFlag),
        field(21, "loadBalancerClass", Kind::OptionalText),
        field(22, "internalTrafficPolicy", Kind::OptionalText),
    ],
};

static SERVICE_PORT: Message = Message {
    name: "ServicePort",
    fields: &[
        field(1, "name", Kind::Text),
        field(2, "protocol", Kind::Text),
        field(3, "port", Kind::Number),
        field(4, "targetPort", Kind::NumberOrText),
        field(5, "nodePort", Kind::Number),
        field(6, "appProtocol", Kind::OptionalText),
    ],
};

static DEPLOYMENT: Message = Message {
    name: "Deployment",
    fields: &[
        field(1, "metadata", Kind::One(&OBJECT_META)),
        field(2, "spec", Kind::One(&DEPLOYMENT_SPEC)),
        field(3, "status", Kind::Ignored),
    ],
};

static DEPLOYMENT_SPEC: Message = Message {
    name: "DeploymentSpec",
    fields: &[
        field(1, "replicas", Kind::OptionalNumber),
        field(2, "selector", Kind::One(&LABEL_SELECTOR)),
        field(3, "template", Kind::One(&POD_TEMPLATE_SPEC)),
        field(4, "strategy", Kind::One(&DEPLOYMENT_STRATEGY)),
        field(5, "minReadySeconds", Kind::Number),
        field(6, "revisionHistoryLimit", Kind::OptionalNumber),
        field(7, "paused", Kind::Flag),
        field(9, "progressDeadlineSeconds", Kind::OptionalNumber),
    ],
};

static DEPLOYMENT_STRATEGY: Message =
    Message { name: "DeploymentStrategy", fields: &[field(1, "type", Kind::Text)] };

static LABEL_SELECTOR: Message =
    Message { name: "LabelSelector", fields: &[field(1, "matchLabels", Kind::TextMap)] };

static POD_TEMPLATE_SPEC: Message = Message {
    name: "PodTemplateSpec",
    fields: &[
        field(1, "metadata", Kind::One(&OBJECT_META)),
        field(2, "spec", Kind::One(&POD_SPEC)),
    ],
};

static POD_SPEC: Message = Message {
    name: "PodSpec",
    fields: &[
        field(2, "containers", Kind::Many(&CONTAINER)),
        field(3, "restartPolicy", Kind::Text),
        field(4, "terminationGracePeriodSeconds", Kind::OptionalNumber),
        field(6, "dnsPolicy", Kind::Text),
        field(7, "nodeSelector", Kind::TextMap),
        field(8, "serviceAccountName", Kind::Text),
        field(9, "serviceAccount", Kind::Text),
        field(10, "nodeName", Kind::Text),
        field(11, "hostNetwork", Kind::Flag),
        field(12, "hostPID", Kind::Flag),
        field(13, "hostIPC", Kind::Flag),
        field(16, "hostname", Kind::Text),
        field(17, "subdomain", Kind::Text),
        field(19, "schedulerName", Kind::Text),
        field(24, "priorityClassName", Kind::Text),
    ],
};

static CONTAINER: Message = Message {
    name: "Container",
    fields: &[
        field(1, "name", Kind::Text),
        field(2, "image", Kind::Text),
        field(3, "command", Kind::Texts),
        field(4, "args", Kind::Texts),
        field(5, "workingDir", Kind::Text),
        field(6, "ports", Kind::Many(&CONTAINER_PORT)),
        field(8, "resources", Kind::One(&RESOURCE_REQUIREMENTS)),
        field(13, "terminationMessagePath", Kind::Text),
        field(14, "imagePullPolicy", Kind::Text),
        field(16, "stdin", Kind::Flag),
        field(17, "stdinOnce", Kind::Flag),
        field(18, "tty", Kind::Flag),
        field(20, "terminationMessagePolicy", Kind::Text),
    ],
};

static CONTAINER_PORT: Message = Message {
    name: "ContainerPort",
    fields: &[
        field(1, "name", Kind::Text),
        field(2, "hostPort", Kind::Number),
        field(3, "containerPort", Kind::Number),
        field(4, "protocol", Kind::Text),
        field(5, "hostIP", Kind::Text),
    ],
};

/// kubectl's commands write none, but Go writes the empty message.
static RESOURCE_REQUIREMENTS: Message = Message { name: "ResourceRequirements", fields: &[] };

static DELETE_OPTIONS: Message = Message {
    name: "DeleteOptions",
    fields: &[
        field(1, "gracePeriodSeconds", Kind::OptionalNumber),
        field(2, "preconditions", Kind::One(&PRECONDITIONS)),
        field(3, "orphanDependents", Kind::OptionalFlag),
        field(4, "propagationPolicy", Kind::OptionalText),
        field(5, "dryRun", Kind::Texts),
    ],
};

static PRECONDITIONS: Message = Message {
    name: "Preconditions",
    fields: &[field(1, "uid", Kind::OptionalText), field(2, "resourceVersion", Kind::OptionalText)],
};
