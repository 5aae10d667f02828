"""Jobs on a real cluster, served by the operator in it. A package, so that its operator is there for these tests and gone for the others."""
