"""What the notebook's cells call: where to run, data sets, exploration, plots, costs and clean-up."""
