//! One description of a structure, from which come its bytes in Rust and its declaration in C.

/// A structure as both languages lay it out.
pub(crate) struct Layout {
    pub(crate) name: &'static str,
    pub(crate) size: usize,
    pub(crate) fields: &'static [FieldLayout],
}

/// A field of a structure.
pub(crate) struct FieldLayout {
    pub(crate) name: &'static str,
    pub(crate) offset: usize,
    pub(crate) size: usize,
    /// The type in C, of the field or of its elements.
    pub(crate) c_type: &'static str,
    /// Elements of the field where it is an array.
    pub(crate) array: Option<usize>,
}

impl Layout {
    /// The name in C: `SourceKey` is `source_key`.
    pub(crate) fn c_name(&self) -> String {
        let mut name = String::new();
        for letter in self.name.chars() {
            if letter.is_ascii_uppercase() && !name.is_empty() {
                name.push('_');
            }
            name.push(letter.to_ascii_lowercase());
        }
        name
    }

    /// The declaration in C with its assertions.
    pub(crate) fn write_c(&self, text: &mut String) {
        let name = self.c_name();
        text.push_str(&format!("\nstruct {name} {{\n"));
        for field in self.fields {
            let declaration = match field.array {
                Some(elements) => format!("{} {}[{elements}]", field.c_type, field.name),
                None => format!("{} {}", field.c_type, field.name),
            };
            text.push_str(&format!("\t{declaration};\n"));
        }
        text.push_str("};\n");
        let size = self.size;
        text.push_str(&format!("_Static_assert(sizeof(struct {name}) == {size}, \"{name}\");\n"));
        for field in self.fields {
            let (member, offset, bytes) = (field.name, field.offset, field.size);
            text.push_str(&format!(
                "_Static_assert(__builtin_offsetof(struct {name}, {member}) == {offset} &&\n\t\tsizeof(((struct {name} *)0)->{member}) == {bytes}, \"{name}.{member}\");\n"
            ));
        }
    }
}

/// What a field may be: a number in the machine's byte order; a port, which has 16 bits, as it is
/// on the wire; or bytes as they are on the wire.
pub(crate) trait Field: Sized {
    const C_TYPE: &'static str;
    const ARRAY: Option<usize>;
    fn put(&self, bytes: &mut [u8]);
    fn get(bytes: &[u8]) -> Self;
}

macro_rules! number_field {
    ($type:ty, $c_type:literal, $to_bytes:ident, $from_bytes:ident) => {
        impl Field for $type {
            const C_TYPE: &'static str = $c_type;
            const ARRAY: Option<usize> = None;

            fn put(&self, bytes: &mut [u8]) {
                bytes.copy_from_slice(&self.$to_bytes());
            }

            fn get(bytes: &[u8]) -> Self {
                let mut value = [0; size_of::<Self>()];
                value.copy_from_slice(bytes);
                Self::$from_bytes(value)
            }
        }
    };
}

number_field!(u8, "__u8", to_ne_bytes, from_ne_bytes);
number_field!(u16, "__u16", to_be_bytes, from_be_bytes);
number_field!(u32, "__u32", to_ne_bytes, from_ne_bytes);
number_field!(u64, "__u64", to_ne_bytes, from_ne_bytes);

impl<const N: usize> Field for [u8; N] {
    const C_TYPE: &'static str = "__u8";
    const ARRAY: Option<usize> = Some(N);

    fn put(&self, bytes: &mut [u8]) {
        bytes.copy_from_slice(self);
    }

    fn get(bytes: &[u8]) -> Self {
        let mut value = [0; N];
        value.copy_from_slice(bytes);
        value
    }
}

/// Declares a structure, its layout, and its way to and from bytes.
macro_rules! abi_struct {
    (
        $(#[$about:meta])*
        $name:ident { $( $(#[$field_about:meta])* $field:ident: $type:ty, )* }
    ) => {
        $(#[$about])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub struct $name {
            $( $(#[$field_about])* pub $field: $type, )*
        }

        // By hand: long arrays have no default of their own.
        impl Default for $name {
            fn default() -> Self {
                Self::from_bytes(&[0; Self::BYTES])
            }
        }

        impl $name {
            /// Bytes of the structure.
            pub const BYTES: usize = size_of::<Self>();

            pub(crate) const LAYOUT: $crate::layout::Layout = $crate::layout::Layout {
                name: stringify!($name),
                size: Self::BYTES,
                fields: &[ $( $crate::layout::FieldLayout {
                    name: stringify!($field),
                    offset: std::mem::offset_of!($name, $field),
                    size: size_of::<$type>(),
                    c_type: <$type as $crate::layout::Field>::C_TYPE,
                    array: <$type as $crate::layout::Field>::ARRAY,
                }, )* ],
            };

            /// As it lies in the kernel's map.
            pub fn to_bytes(&self) -> [u8; Self::BYTES] {
                let mut bytes = [0; Self::BYTES];
                $( {
                    let at = std::mem::offset_of!($name, $field);
                    let part = &mut bytes[at..at + size_of::<$type>()];
                    $crate::layout::Field::put(&self.$field, part);
                } )*
                bytes
            }

            /// Reads what [`Self::to_bytes`] writes.
            pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Self {
                Self { $( $field: {
                    let at = std::mem::offset_of!($name, $field);
                    $crate::layout::Field::get(&bytes[at..at + size_of::<$type>()])
                }, )* }
            }
        }
    };
}

pub(crate) use abi_struct;
