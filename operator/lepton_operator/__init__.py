"""The operator of LeptonTrainingJobs: decides, in pure modules, and acts on a cluster or on one machine."""
