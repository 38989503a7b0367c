"""What notebook cells call: where to run, data sets, exploration, plots, costs, clean-up."""
