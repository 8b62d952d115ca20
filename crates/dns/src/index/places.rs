//! Values in one piece of memory, by numbers that stay while their values are there. A tree that
//! grows in the order of its keys would be half empty.

/// Values by number. The number of one that has gone is given to another.
#[derive(Clone, Debug)]
pub(crate) struct Places<T> {
    values: Vec<Option<T>>,
    /// Numbers without a value.
    free: Vec<u32>,
}

impl<T> Places<T> {
    /// How many values there are.
    pub(crate) fn len(&self) -> usize {
        self.values.len() - self.free.len()
    }

    pub(crate) fn get(&self, number: u32) -> Option<&T> {
        self.values.get(number as usize)?.as_ref()
    }

    /// Answers the value's number.
    pub(crate) fn insert(&mut self, value: T) -> u32 {
        let free = self.free.pop();
        let place = free.and_then(|number| Some((number, self.values.get_mut(number as usize)?)));
        if let Some((number, place)) = place {
            *place = Some(value);
            return number;
        }
        // A zone has fewer Services than numbers, by far.
        let number = u32::try_from(self.values.len()).unwrap_or(u32::MAX);
        self.values.push(Some(value));
        number
    }

    pub(crate) fn remove(&mut self, number: u32) -> Option<T> {
        let value = self.values.get_mut(number as usize)?.take()?;
        self.free.push(number);
        Some(value)
    }
}

impl<T> Default for Places<T> {
    fn default() -> Self {
        Self { values: Vec::new(), free: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_with_their_values_and_are_given_again() {
        let mut places = Places::default();
        let numbers = ["a", "b", "c"].map(|value| places.insert(value));
        assert_eq!(
            numbers.map(|number| places.get(number).copied()),
            [Some("a"), Some("b"), Some("c")]
        );
        assert_eq!(places.remove(numbers[1]), Some("b"));
        assert_eq!(
            (places.remove(numbers[1]), places.get(numbers[1]), places.len()),
            (None, None, 2)
        );
        assert_eq!(places.insert("d"), numbers[1]);
        assert_eq!((places.insert("e"), places.len()), (3, 4));
        assert_eq!(places.remove(9), None);
    }
}
