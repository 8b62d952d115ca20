//! Sets of a few values in one piece of memory. As with [`crate::FlatMap`], a
//! [`std::collections::BTreeSet`] would take room for eleven, mostly in vain.

use std::collections::BTreeSet;

/// An ordered set that takes no more room than its values, made at once and read from then on.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlatSet<T>(Box<[T]>);

impl<T> FlatSet<T> {
    /// Without any value, which takes no memory at all.
    pub fn new() -> Self {
        Self(Box::default())
    }

    /// The number of values.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no value.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The values in order.
    pub fn iter(&self) -> std::slice::Iter<'_, T> {
        self.0.iter()
    }

    /// The least value.
    pub fn first(&self) -> Option<&T> {
        self.0.first()
    }
}

impl<T: Ord> FlatSet<T> {
    /// Whether the value is one of these.
    pub fn contains(&self, value: &T) -> bool {
        self.0.binary_search(value).is_ok()
    }
}

impl<T> Default for FlatSet<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: std::fmt::Debug> std::fmt::Debug for FlatSet<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self).finish()
    }
}

impl<T: Ord> FromIterator<T> for FlatSet<T> {
    fn from_iter<I: IntoIterator<Item = T>>(values: I) -> Self {
        let mut values: Vec<T> = values.into_iter().collect();
        values.sort_unstable();
        values.dedup();
        // The room that the vector has besides goes.
        Self(values.into_boxed_slice())
    }
}

impl<T> From<BTreeSet<T>> for FlatSet<T> {
    fn from(values: BTreeSet<T>) -> Self {
        Self(values.into_iter().collect())
    }
}

impl<T: Ord, const N: usize> From<[T; N]> for FlatSet<T> {
    fn from(values: [T; N]) -> Self {
        values.into_iter().collect()
    }
}

impl<T> IntoIterator for FlatSet<T> {
    type Item = T;
    type IntoIter = std::vec::IntoIter<T>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_vec().into_iter()
    }
}

impl<'a, T> IntoIterator for &'a FlatSet<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_what_a_tree_holds() {
        for values in [&[][..], &[7], &[3, 1, 2], &[5, 5, 1, 5, 1]] {
            let flat: FlatSet<u32> = values.iter().copied().collect();
            let tree: BTreeSet<u32> = values.iter().copied().collect();
            assert!(flat.iter().eq(&tree), "{flat:?} and {tree:?}");
            assert_eq!((flat.len(), flat.is_empty()), (tree.len(), tree.is_empty()));
            assert_eq!(flat.first(), tree.first());
            assert!((0..9).all(|value| flat.contains(&value) == tree.contains(&value)));
            assert_eq!(format!("{flat:?}"), format!("{tree:?}"));
            assert_eq!(flat, FlatSet::from(tree));
        }
    }
}
