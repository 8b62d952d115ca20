//! Functions and operators with their types: those of the language, and the libraries that
//! Kubernetes adds (kubernetes.io, "CEL libraries"), up to version 1.33.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use super::types::Type;

/// One way to call a function.
pub(super) struct Signature {
    pub(super) is_method: bool,
    pub(super) parameters: Vec<Type>,
    pub(super) result: Type,
}

/// A line each: `m` for methods, whose first parameter is their target, `f` for all else.
const TABLE: &str = "
f !_ bool : bool
f -_ int : int
f -_ double : double
f -_ duration : duration
f _+_ int int : int
f _+_ uint uint : uint
f _+_ double double : double
f _+_ string string : string
f _+_ bytes bytes : bytes
f _+_ list(A) list(A) : list(A)
f _+_ duration duration : duration
f _+_ timestamp duration : timestamp
f _+_ duration timestamp : timestamp
f _-_ int int : int
f _-_ uint uint : uint
f _-_ double double : double
f _-_ duration duration : duration
f _-_ timestamp duration : timestamp
f _-_ timestamp timestamp : duration
f _*_ int int : int
f _*_ uint uint : uint
f _*_ double double : double
f _/_ int int : int
f _/_ uint uint : uint
f _/_ double double : double
f _%_ int int : int
f _%_ uint uint : uint
f _==_ A A : bool
f _!=_ A A : bool
f _in_ A list(A) : bool
f _in_ A map(A,B) : bool
f size string : int
f size bytes : int
f size list(A) : int
f size map(A,B) : int
m size string : int
m size bytes : int
m size list(A) : int
m size map(A,B) : int
f type A : type
f dyn A : dyn
f bool bool : bool
f bool string : bool
f int int : int
f int uint : int
f int double : int
f int string : int
f int timestamp : int
f int duration : int
f uint uint : uint
f uint int : uint
f uint double : uint
f uint string : uint
f double double : double
f double int : double
f double uint : double
f double string : double
f string string : string
f string int : string
f string uint : string
f string double : string
f string bool : string
f string bytes : string
f string timestamp : string
f string duration : string
f string IP : string
f string CIDR : string
f bytes bytes : bytes
f bytes string : bytes
f timestamp string : timestamp
f timestamp int : timestamp
f timestamp timestamp : timestamp
f duration string : duration
f duration int : duration
f duration duration : duration
m contains string string : bool
m startsWith string string : bool
m endsWith string string : bool
m matches string string : bool
f matches string string : bool
m find string string : string
m findAll string string : list(string)
m findAll string string int : list(string)
m charAt string int : string
m indexOf string string : int
m indexOf string string int : int
m lastIndexOf string string : int
m lastIndexOf string string int : int
m join list(string) : string
m join list(string) string : string
m lowerAscii string : string
m upperAscii string : string
m replace string string string : string
m replace string string string int : string
m split string string : list(string)
m split string string int : list(string)
m substring string int : string
m substring string int int : string
m trim string : string
m format string list(dyn) : string
f strings.quote string : string
m isSorted list(A) : bool
m sum list(A) : A
m min list(A) : A
m max list(A) : A
m indexOf list(A) A : int
m lastIndexOf list(A) A : int
f sets.contains list(A) list(A) : bool
f sets.equivalent list(A) list(A) : bool
f sets.intersects list(A) list(A) : bool
m getFullYear timestamp : int
m getMonth timestamp : int
m getDate timestamp : int
m getDayOfMonth timestamp : int
m getDayOfWeek timestamp : int
m getDayOfYear timestamp : int
m getHours timestamp : int
m getMinutes timestamp : int
m getSeconds timestamp : int
m getMilliseconds timestamp : int
m getFullYear timestamp string : int
m getMonth timestamp string : int
m getDate timestamp string : int
m getDayOfMonth timestamp string : int
m getDayOfWeek timestamp string : int
m getDayOfYear timestamp string : int
m getHours timestamp string : int
m getMinutes timestamp string : int
m getSeconds timestamp string : int
m getMilliseconds timestamp string : int
m getHours duration : int
m getMinutes duration : int
m getSeconds duration : int
m getMilliseconds duration : int
f optional.of A : optional(A)
f optional.ofNonZeroValue A : optional(A)
f optional.none : optional(A)
m hasValue optional(A) : bool
m value optional(A) : A
m orValue optional(A) A : A
m or optional(A) optional(A) : optional(A)
f url string : URL
f isURL string : bool
m getScheme URL : string
m getHost URL : string
m getHostname URL : string
m getPort URL : string
m getEscapedPath URL : string
m getQuery URL : map(string,list(string))
f ip string : IP
f isIP string : bool
f ip.isCanonical string : bool
m family IP : int
m isUnspecified IP : bool
m isLoopback IP : bool
m isLinkLocalMulticast IP : bool
m isLinkLocalUnicast IP : bool
m isGlobalUnicast IP : bool
f cidr string : CIDR
f isCIDR string : bool
m containsIP CIDR IP : bool
m containsIP CIDR string : bool
m containsCIDR CIDR CIDR : bool
m containsCIDR CIDR string : bool
m ip CIDR : IP
m masked CIDR : CIDR
m prefixLength CIDR : int
f quantity string : Quantity
f isQuantity string : bool
m sign Quantity : int
m isInteger Quantity : bool
m asInteger Quantity : int
m asApproximateFloat Quantity : double
m add Quantity Quantity : Quantity
m add Quantity int : Quantity
m sub Quantity Quantity : Quantity
m sub Quantity int : Quantity
m isGreaterThan Quantity Quantity : bool
m isLessThan Quantity Quantity : bool
m compareTo Quantity Quantity : int
f semver string : Semver
f semver string bool : Semver
f isSemver string : bool
f isSemver string bool : bool
m major Semver : int
m minor Semver : int
m patch Semver : int
m isGreaterThan Semver Semver : bool
m isLessThan Semver Semver : bool
m compareTo Semver Semver : int
f format.named string : optional(Format)
f format.byte : Format
f format.date : Format
f format.datetime : Format
f format.dns1035Label : Format
f format.dns1035LabelPrefix : Format
f format.dns1123Label : Format
f format.dns1123LabelPrefix : Format
f format.dns1123Subdomain : Format
f format.dns1123SubdomainPrefix : Format
f format.labelValue : Format
f format.qualifiedName : Format
f format.uri : Format
f format.uuid : Format
m validate Format string : optional(list(string))
m serviceAccount Authorizer string string : Authorizer
m path Authorizer string : PathCheck
m group Authorizer string : GroupCheck
m resource GroupCheck string : ResourceCheck
m subresource ResourceCheck string : ResourceCheck
m namespace ResourceCheck string : ResourceCheck
m name ResourceCheck string : ResourceCheck
m check PathCheck string : Decision
m check ResourceCheck string : Decision
m allowed Decision : bool
m reason Decision : string
m errored Decision : bool
m error Decision : string
";

/// The ways to call a function.
pub(super) fn of(name: &str) -> &'static [Signature] {
    static ALL: OnceLock<BTreeMap<&'static str, Vec<Signature>>> = OnceLock::new();
    ALL.get_or_init(read).get(name).map_or(&[], Vec::as_slice)
}

fn read() -> BTreeMap<&'static str, Vec<Signature>> {
    let mut all: BTreeMap<&'static str, Vec<Signature>> = BTreeMap::new();
    for line in TABLE.lines().filter(|line| !line.is_empty()) {
        let mut words = line.split(' ');
        let is_method = words.next() == Some("m");
        let name = words.next().unwrap_or_default();
        let types: Vec<&str> = words.filter(|word| *word != ":").collect();
        let Some((result, parameters)) = types.split_last() else { continue };
        let parameters = parameters.iter().map(|word| read_type(word)).collect();
        let signature = Signature { is_method, parameters, result: read_type(result) };
        all.entry(name).or_default().push(signature);
    }
    for name in ["_<_", "_<=_", "_>_", "_>=_"] {
        all.insert(name, orders());
    }
    all
}

/// What has an order: numbers of any kinds with each other, and all else with its like.
fn orders() -> Vec<Signature> {
    let numbers = [Type::Int, Type::Uint, Type::Double];
    let mut pairs: Vec<[Type; 2]> = numbers
        .iter()
        .flat_map(|one| numbers.iter().map(|other| [one.clone(), other.clone()]))
        .collect();
    let others = [Type::Bool, Type::String, Type::Bytes, Type::Duration, Type::Timestamp];
    pairs.extend(others.map(|one| [one.clone(), one]));
    let signature = |pair: [Type; 2]| Signature {
        is_method: false,
        parameters: pair.to_vec(),
        result: Type::Bool,
    };
    pairs.into_iter().map(signature).collect()
}

fn read_type(word: &'static str) -> Type {
    let inside = |name: &str| word.strip_prefix(name)?.strip_prefix('(')?.strip_suffix(')');
    if let Some(item) = inside("list") {
        return Type::list(read_type(item));
    }
    if let Some((key, value)) = inside("map").and_then(|inner| inner.split_once(',')) {
        return Type::map(read_type(key), read_type(value));
    }
    if let Some(inner) = inside("optional") {
        return Type::optional(read_type(inner));
    }
    match word {
        "dyn" => Type::Dyn,
        "bool" => Type::Bool,
        "int" => Type::Int,
        "uint" => Type::Uint,
        "double" => Type::Double,
        "string" => Type::String,
        "bytes" => Type::Bytes,
        "duration" => Type::Duration,
        "timestamp" => Type::Timestamp,
        "type" => Type::Type,
        "A" => Type::Any('A'),
        "B" => Type::Any('B'),
        "IP" => Type::Opaque("net.IP"),
        "CIDR" => Type::Opaque("net.CIDR"),
        "URL" => Type::Opaque("kubernetes.URL"),
        "Quantity" => Type::Opaque("kubernetes.Quantity"),
        "Semver" => Type::Opaque("kubernetes.Semver"),
        "Format" => Type::Opaque("kubernetes.NamedFormat"),
        "Authorizer" => Type::AUTHORIZER,
        "PathCheck" => Type::Opaque("kubernetes.authorization.PathCheck"),
        "GroupCheck" => Type::Opaque("kubernetes.authorization.GroupCheck"),
        "ResourceCheck" => Type::RESOURCE_CHECK,
        "Decision" => Type::Opaque("kubernetes.authorization.Decision"),
        other => Type::Opaque(other),
    }
}
