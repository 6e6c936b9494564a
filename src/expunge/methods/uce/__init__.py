"""UCE: Unified Concept Editing (Gandikota et al., WACV 2024), and its debiasing."""
