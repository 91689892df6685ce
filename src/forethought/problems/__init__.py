"""What is asked, and how an answer is checked: one file per family, exact verifiers of our own."""
