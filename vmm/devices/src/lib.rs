//! Hardware models.
