"""What a prefix costs: antefix beside the bare base model and PEFT, all in one run."""
