"""Jobs on a real cluster, served by the operator in it: a package, so that this operator is there for these tests and gone for others."""
