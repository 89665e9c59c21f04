"""The parts of a run's report: what it says, the page, its charts and drawings, what it shows of fields."""
