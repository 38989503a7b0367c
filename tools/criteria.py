"""What projects of this kind are graded on, and what shows each of it here.

`tools.rubric` looks all of it up and writes docs/rubric.md. A reference is `path::words`: words of
code that one cell of a notebook has, a function, class or line of a script, the name of a test.
"""

from typing import NamedTuple

COURSE = "train_and_deploy.ipynb"
LISTINGS = "notebooks/listings_web_app.ipynb"
BINS = "notebooks/inventory_bins.ipynb"
DOGS = "notebooks/dog_breeds.ipynb"
OWN = "notebooks/your_own_folder.ipynb"


class Row(NamedTuple):
    """One thing that is asked for.

    Attributes:
        cells: at least one of them has to have an output.
        note: what else is to be said; a row without cells has to say why.
        unless: words of code, for a row without cells: an executed cell with them refutes it.
    """

    asked: str
    cells: tuple[str, ...] = ()
    code: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()
    note: str = ""
    unless: tuple[str, ...] = ()


GROUPS = {
    "The data": [
        Row(
            "The data set is explored: classes counted, samples shown, statistics drawn",
            cells=(
                f"{COURSE}::plots.class_counts(counts)",
                f"{COURSE}::plots.sample_grid(dataset",
                f"{COURSE}::plots.pixel_histogram(survey.histogram)",
            ),
            code=("studio/explore.py::survey", "studio/explore.py::statistics"),
            tests=("tests/studio/test_explore.py::test_statistics_are_those_of_all_the_pixels",),
        ),
        Row(
            "It is split into training, validation and test, by class and repeatably",
            cells=(
                f"{COURSE}::datasets.prepare(DATA",
                f"{LISTINGS}::datasets.prepare(DATA",
            ),
            code=("studio/splitting.py::split",),
            tests=(
                "tests/studio/test_datasets.py::"
                "test_a_split_is_disjoint_complete_stratified_and_repeatable",
            ),
        ),
        Row(
            "Any folder of pictures will do: one line changes",
            cells=(f"{OWN}::datasets.prepare(", f"{OWN}::wide(advice.table(lessons))"),
            code=("studio/datasets.py::prepare", "studio/advice.py::table"),
            tests=(
                "tests/notebooks/test_your_own_folder.py::test_the_rare_class_is_kept_and_named",
            ),
        ),
        Row(
            "No test picture is also a training picture",
            cells=(f"{COURSE}::explore.duplicates(survey.pictures)",),
            code=("studio/explore.py::duplicates", "studio/duplicates.py::find_pairs"),
            tests=("tests/studio/test_explore.py::test_planted_duplicates_are_found",),
        ),
        Row(
            "Broken pictures and dead links are found and reported",
            cells=(f"{LISTINGS}::left_out = pd.read_csv(linked.report)",),
            code=("studio/checking.py::checked", "studio/links.py::fetch"),
            tests=("tests/studio/test_datasets.py::test_broken_pictures_are_left_out_and_listed",),
        ),
        Row(
            "The data are uploaded to S3",
            cells=(f"{COURSE}::data_uris = {{", f"{LISTINGS}::data_uris = {{"),
            code=("studio/packing.py::write_tar", "studio/packing.py::write_recordio"),
            tests=("tests/studio/test_datasets.py::test_tars_hold_every_picture_in_order",),
        ),
        Row(
            "Preprocessing and augmentation, the same in training and at the endpoint",
            cells=(f"{COURSE}::gap = largest_gap(evaluation, answers)",),
            code=(
                "vision/preprocessing.py::Preprocessing",
                "vision/augment.py::build_augment",
            ),
            tests=(
                "tests/test_inference.py::"
                "test_the_same_picture_has_the_same_probabilities_everywhere",
                "tests/vision/test_feeds.py::test_shift_and_flip_move_pictures_and_invent_nothing",
            ),
        ),
    ],
    "The search for hyperparameters": [
        Row(
            "A tuning job over two or more hyperparameters, with sensible ranges and scales",
            cells=(
                f"{COURSE}::hyperparameter_ranges={{",
                f"{COURSE}::tuner.tune(inputs=inputs",
                f"{LISTINGS}::tuner.tune(inputs=inputs",
            ),
            code=("hpo.py::main", "vision/arguments.py::_add_optimisation"),
            tests=(
                "tests/test_hpo.py::test_a_trial_prints_the_metrics_and_leaves_no_file",
                "tests/local_cloud/test_tuning_jobs.py::test_trials_keep_to_the_ranges",
            ),
        ),
        Row(
            "Its objective is a validation metric that the script logs",
            cells=(
                f"{COURSE}::metric_definitions=[",
                f"{COURSE}::trials.sort_values(",
            ),
            code=("hpo.py::trainer.fit(", "vision/progress.py::Best.__str__"),
            tests=(
                "tests/local_cloud/test_tuning_jobs.py::"
                "test_the_objective_is_the_last_value_the_script_printed",
            ),
        ),
        Row(
            "The best hyperparameters are retrieved from the service",
            cells=(
                f"{COURSE}::tuner.best_training_job()",
                f"{LISTINGS}::tuner.best_training_job()",
            ),
            code=("studio/jobs.py::trials",),
            tests=("tests/local_cloud/test_tuning_sdk.py::test_tuner_tells_its_results",),
        ),
    ],
    "The training": [
        Row(
            "The model is trained with the best values",
            cells=(
                f"{COURSE}::**best_hyperparameters, **final",
                f"{COURSE}::trainer.train(input_data_config=inputs",
                f"{LISTINGS}::jobs = {{depth: train(depth, found)}}",
            ),
            code=("train_model.py::main", "vision/training.py::Trainer.fit"),
            tests=("tests/test_train_model.py::test_it_learns",),
        ),
        Row(
            "A pretrained network is adapted: transfer learning",
            cells=(f"{LISTINGS}::jobs[PHONE] = train(PHONE",),
            code=("vision/models.py::build_model", "vision/models.py::Network.set_trainable"),
            tests=(
                "tests/vision/test_models.py::"
                "test_what_is_frozen_neither_learns_nor_moves_its_statistics",
            ),
        ),
        Row(
            "A learning curve: what more pictures would bring",
            cells=(f"{DOGS}::plots.learning_curve(", f"{OWN}::plots.learning_curve("),
            code=("learning_curve.py::main", "studio/learning.py::forecast"),
            tests=("tests/test_learning_curve.py::test_more_pictures_teach_more",),
        ),
        Row(
            "Metrics are logged while it trains, and read back",
            cells=(f"{COURSE}::epochs = history(cloud, job)",),
            code=("vision/progress.py::HistoryWriter", "studio/jobs.py::follow"),
            tests=(
                "tests/test_train_model.py::test_the_lines_and_the_history_tell_the_same",
                "tests/notebooks/test_course.py::test_its_log_shows_every_epoch_of_the_training",
            ),
        ),
        Row(
            "It stops early and keeps the best weights, not the last",
            cells=(f"{COURSE}::plots.training_curves(epochs)",),
            code=("vision/progress.py::Best.update", "vision/training.py::Trainer._finished"),
            tests=(
                "tests/vision/test_training.py::test_the_best_weights_remain_not_the_last",
                "tests/vision/test_training.py::test_patience_starts_again_at_every_improvement",
            ),
        ),
        Row(
            "The script's arguments, channels and model folder are those of SageMaker",
            cells=(f"{COURSE}::list_archive(cloud, model_uri)",),
            code=("train_model.py::get_args_parser", "vision/arguments.py::_add_data"),
            tests=(
                "tests/test_train_model.py::test_the_scripts_stay_within_the_container_contract",
                "tests/test_train_model.py::test_the_artifact_is_complete",
            ),
        ),
        Row(
            "Runs can be repeated: everything random has a seed",
            cells=(f"{COURSE}::random_seed=1", f"{COURSE}::datasets.samples(dataset"),
            code=("vision/seeds.py::seed_of",),
            tests=(
                "tests/test_train_model.py::"
                "test_the_same_command_gives_the_same_weights_from_folders_and_from_tars",
            ),
        ),
    ],
    "Debugger and profiler": [
        Row(
            "The debugger's hook is in the training script",
            cells=(
                f'{COURSE}::"debug": "true", "profile": "true"',
                f'{COURSE}::trial = open_trial(output / "tensors")',
            ),
            code=(
                "train_model.py::with watching(trainer",
                "vision/debugging.py::Debugger",
            ),
            tests=(
                "tests/vision/test_debugging.py::"
                "test_train_and_eval_have_their_steps_and_their_losses_are_those_of_the_history",
            ),
        ),
        Row(
            "A tensor of the debugger is plotted over the steps",
            cells=(f"{COURSE}::plot_losses(trial)", f'{COURSE}::findings.picture("norms")'),
            code=("insight/plots.py::losses", "insight/plots.py::norms"),
            tests=("tests/insight/test_report.py::test_the_numbers_follow_from_the_files",),
        ),
        Row(
            "The debugger's rules are run and their verdicts explained",
            cells=(
                f"{COURSE}::reporter.run(",
                f'{COURSE}::findings.table("debugger")',
            ),
            code=("report.py::main", "insight/report.py::build"),
            tests=(
                "tests/insight/test_rules.py::test_rule_fires_where_it_must",
                "tests/insight/test_rules.py::test_near_misses_are_quiet",
            ),
            note="[All eleven, proved both ways](rules.md).",
        ),
        Row(
            "The profiler's report: machine, steps, operators, rules",
            cells=(
                f'{COURSE}::findings.table("profiler")',
                f"{COURSE}::findings.operators()",
                f"{COURSE}::findings.in_place()",
            ),
            code=("vision/profiling.py::Profiler", "insight/profile_rules.py::check_profile"),
            tests=(
                "tests/vision/test_profiling.py::test_every_part_of_a_step_is_timed_by_itself",
                "tests/insight/test_profile_rules.py::"
                "test_it_fires_where_it_must_and_not_where_it_comes_near",
            ),
            note="[All nine, proved both ways](profiler_rules.md).",
        ),
        Row(
            "Does anything look wrong, and what would mend it?",
            cells=(f"{COURSE}::Markdown(findings.anomalies())",),
            code=("studio/insight.py::Findings.anomalies", "studio/insight.py::_anomaly"),
            tests=(
                "tests/insight/test_rules.py::test_what_is_advised_is_a_flag_of_training",
                "tests/insight/test_rules.py::test_following_the_advice_makes_the_run_better",
            ),
        ),
        Row(
            "A finding of the profiler is acted on: use of the machine before and after",
            cells=(f"{DOGS}::pace(cloud, runs",),
            code=("studio/insight.py::pace", "insight/profile_rules.py::check_profile"),
            tests=(
                "tests/notebooks/test_dog_breeds.py::test_the_advice_of_the_rule_is_followed_until_it_is_quiet",
            ),
        ),
        Row(
            "A training broken on purpose is caught, mended, and better for it",
            cells=(
                f"{COURSE}::broken = short_run(",
                f"{COURSE}::compare(reports)",
                f'{COURSE}::caught["status"] == "IssuesFound"',
            ),
            code=("studio/insight.py::compare", "insight/rules/weights.py::WeightUpdateRatio"),
            tests=(
                "tests/notebooks/test_course.py::test_a_run_on_few_pictures_succeeds_without_a_warning",
            ),
        ),
    ],
    "The evaluation": [
        Row(
            "The model is measured on test pictures that played no part before",
            cells=(
                f"{COURSE}::evaluation = load_report(",
                f"{COURSE}::**Test accuracy {{accuracy:.1%}}**",
            ),
            code=("evaluate.py::main", "vision/metrics.py::"),
            tests=(
                "tests/test_evaluate.py::"
                "test_every_figure_of_the_report_follows_from_the_predictions",
                "tests/vision/test_metrics.py::test_classification_agrees_with_scikit_learn",
            ),
        ),
        Row(
            "It is compared with a benchmark",
            cells=(f"{COURSE}::evaluation.baselines()", f"{LISTINGS}::plots.benchmark(table)"),
            code=("evaluate.py::compare", "vision/baselines.py::"),
            tests=("tests/test_evaluate.py::test_the_baselines_are_measured_on_the_same_pictures",),
        ),
        Row(
            "Confusion matrix, precision and recall of every class",
            cells=(
                f"{COURSE}::plots.confusion_matrix(",
                f"{COURSE}::plots.per_class(evaluation.classes())",
            ),
            code=("evaluate.py::make_report", "studio/plots.py::confusion_matrix"),
            tests=(
                "tests/studio/test_evaluation.py::test_the_hardest_pair_counts_mistakes_both_ways",
            ),
        ),
        Row(
            "Its mistakes are looked at, and where the network looked",
            cells=(f'{COURSE}::evaluation.picture("worst_mistakes")',),
            code=("vision/explain.py::grad_cam", "evaluate.py::notable_pictures"),
            tests=(
                "tests/vision/test_explain.py::test_the_evidence_is_found_where_it_is",
                "tests/vision/test_metrics.py::test_swapped_labels_are_suspects",
            ),
        ),
        Row(
            "Its confidence is calibrated, and it may answer “not sure”",
            cells=(
                f'{COURSE}::evaluation.picture("reliability")',
                f'{COURSE}::evaluation.picture("coverage")',
            ),
            code=(
                "vision/calibration.py::fit_temperature",
                "vision/calibration.py::choose_threshold",
            ),
            tests=(
                "tests/vision/test_calibration.py::test_the_temperature_is_found_again",
                "tests/test_inference.py::test_under_the_threshold_the_label_is_null",
            ),
        ),
    ],
    "The endpoint": [
        Row(
            "The model is deployed, with an inference script of its own",
            cells=(
                f"{COURSE}::Endpoint.create(endpoint_name=cloud.run",
                f"{LISTINGS}::update_endpoint(",
            ),
            code=("inference.py::model_fn", "inference.py::input_fn", "inference.py::predict_fn"),
            tests=(
                "tests/test_inference.py::"
                "test_the_handlers_have_the_numbers_of_parameters_that_the_toolkit_counts",
                "tests/local_cloud/test_hosting_sdk.py::test_resources",
            ),
        ),
        Row(
            "It is queried, and the answer shown beside the picture",
            cells=(
                f"{COURSE}::plots.prediction(path, answer, truth=name)",
                f"{COURSE}::plots.predictions(answers)",
            ),
            code=("inference.py::output_fn",),
            tests=("tests/test_inference.py::test_the_answer",),
        ),
        Row(
            "Bad requests are refused in a sentence",
            cells=(f'{COURSE}::ask(b"this is no picture")',),
            code=("vision/preprocessing.py::open_picture",),
            tests=(
                "tests/test_inference.py::test_a_refused_request_is_one_sentence_with_its_status",
                "tests/notebooks/test_course.py::test_the_endpoint_refuses_what_is_no_picture",
            ),
        ),
        Row(
            "How long an answer takes is measured",
            cells=(f"{COURSE}::plots.latency(milliseconds)", f"{LISTINGS}::plots.latency(through)"),
            code=("studio/evaluation.py::time_requests",),
            tests=("tests/local_cloud/test_hosting.py::test_latency_of_one_invocation",),
        ),
        Row(
            "Endpoint, model and data are removed, and nothing is left",
            cells=(f"{COURSE}::left = leftovers(cloud)", f"{LISTINGS}::left = leftovers(cloud)"),
            code=("studio/cleanup.py::clean_up", "studio/cleanup.py::leftovers"),
            tests=(
                "tests/notebooks/test_course.py::test_nothing_is_left_at_its_end",
                "tests/notebooks/test_course.py::test_not_one_object_is_left_in_s3",
                "tests/studio/test_cleanup.py::"
                "test_all_of_a_run_is_counted_and_removed_and_nothing_of_another",
            ),
        ),
    ],
    "Beyond what is asked: money and scale": [
        Row(
            "Every launch names its price first",
            cells=(
                f'{COURSE}::agree(cloud, "the search"',
                f'{COURSE}::agree(cloud, "the endpoint"',
            ),
            code=("studio/costs.py::agree", "studio/costs.py::hourly_price"),
            tests=(
                "tests/studio/test_costs.py::"
                "test_above_the_budget_yes_goes_on_after_the_price_was_named",
                "tests/studio/test_costs.py::test_anything_but_yes_starts_nothing",
            ),
        ),
        Row(
            "Cost analysis: what the run cost, launch by launch",
            cells=(f"{COURSE}::bill = costs.bill(cloud)",),
            code=("studio/costs.py::bill", "studio/usage.py::usage"),
            tests=(
                "tests/studio/test_costs.py::"
                "test_the_bill_has_a_row_for_every_launch_and_none_for_a_trial",
                "tests/studio/test_costs.py::"
                "test_the_total_is_the_sum_of_the_rows_as_they_are_shown",
            ),
        ),
        Row(
            "Spot capacity, with checkpoints",
            cells=(
                f"{COURSE}::enable_managed_spot_training=True",
                f"{COURSE}::costs.cost_of(cloud, job)",
            ),
            code=("vision/checkpoint.py::Checkpoints", "vision/training.py::Trainer._resume"),
            tests=(
                "tests/test_train_model.py::"
                "test_a_training_killed_at_random_ends_with_the_weights_of_an_unbroken_one",
                "tests/local_cloud/test_checkpoints_and_spot.py::"
                "test_an_interrupted_spot_job_starts_again_from_its_checkpoint",
                "tests/jobs/test_hosts_and_interruptions.py::"
                "test_a_spot_job_that_is_killed_ends_with_the_weights_of_an_unbroken_one",
            ),
        ),
        Row(
            "A spot interruption in the middle of a training is survived",
            cells=(f'{BINS}::"interrupt", name', f"{BINS}::went_through = phases(job)"),
            code=(
                "vision/training.py::Trainer._checkpoint",
                "local_cloud/interruption.py::interrupt",
            ),
            tests=(
                "tests/jobs/test_hosts_and_interruptions.py::"
                "test_two_hosts_and_an_interruption_leave_the_learning_curve_as_it_is",
            ),
        ),
        Row(
            "Distributed training over several instances",
            cells=(
                f"{BINS}::distributed=Torchrun(process_count_per_node=1)",
                f"{BINS}::trainer.train(input_data_config=inputs",
            ),
            code=("vision/distributed.py::Group", "local_cloud/cluster.py::Cluster"),
            tests=(
                "tests/jobs/test_hosts_and_interruptions.py::"
                "test_two_hosts_and_an_interruption_leave_the_learning_curve_as_it_is",
                "tests/local_cloud/test_several_hosts.py::"
                "test_torchrun_of_the_sdk_over_two_hosts_with_two_processes_each",
            ),
        ),
        Row(
            "Several models behind one endpoint, compared under the same questions",
            cells=(
                f"{LISTINGS}::EndpointConfig.create(endpoint_config_name=candidates",
                f"{LISTINGS}::winner = choose(table)",
            ),
            code=("studio/evaluation.py::benchmark", "studio/evaluation.py::choose"),
            tests=(
                "tests/local_cloud/test_hosting_variants.py::test_traffic_follows_the_weights",
                "tests/notebooks/test_listings_web_app.py::"
                "test_the_table_names_three_models_and_the_choice_follows_from_it",
            ),
        ),
        Row(
            "Data capture at the endpoint, read back and watched for drift",
            cells=(
                f"{BINS}::records = monitoring.captured(cloud",
                f"{BINS}::plots.drift(stream",
            ),
            code=("local_cloud/data_capture.py::DataCapture", "studio/monitoring.py::captured"),
            tests=("tests/local_cloud/test_hosting_requests.py::test_data_capture",),
        ),
        Row(
            "Asynchronous inference",
            code=("local_cloud/asynchronous.py::AsyncQueue",),
            tests=("tests/local_cloud/test_hosting_requests.py::test_asynchronous_requests",),
            note="No notebook uses it; the local cloud carries it out.",
            unless=("AsyncInferenceConfig", "async_inference_config", "invoke_async"),
        ),
        Row(
            "Serverless inference",
            code=("local_cloud/variants.py::self.serverless = ",),
            tests=("tests/local_cloud/test_hosting_variants.py::test_a_serverless_endpoint",),
            note="No notebook uses it; the local cloud carries it out.",
            unless=("ServerlessConfig", "serverless_config"),
        ),
        Row(
            "Batch transform",
            code=("local_cloud/transform.py::TransformJob",),
            tests=("tests/local_cloud/test_transform_jobs.py::test_transformer_of_the_sdk",),
            note="No notebook uses it; the local cloud carries it out.",
            unless=("Transformer(", "create_transform_job"),
        ),
        Row(
            "Auto scaling of the endpoint",
            note="Not offered by the local cloud, so no notebook asks for it.",
            unless=("application-autoscaling", "register_scalable_target"),
        ),
    ],
    "Beyond what is asked: the application": [
        Row(
            "A Lambda function asks the endpoint",
            cells=(f"{LISTINGS}::direct = function.handler(picture, None)",),
            code=("web/function.py::handler", "web/function.py::classify"),
            tests=(
                "tests/web/test_function.py::"
                "test_a_picture_reaches_the_endpoint_untouched_and_its_answer_comes_back",
                "tests/web/test_function.py::test_malformed_requests_never_get_a_500",
            ),
        ),
        Row(
            "A web page for its users, behind an API",
            cells=(
                f'{LISTINGS}::answer = post("/classify"',
                f"{LISTINGS}::screenshot(page.page_url",
            ),
            code=("web/page/app.js::", "web/template.yaml::", "local_cloud/gateway.py::gateway"),
            tests=(
                "tests/web/test_whole.py::"
                "test_samples_drops_and_doubts_are_answered_by_the_endpoint",
                "tests/web/test_page.py::test_every_state_is_accessible_and_fits_a_phone",
            ),
        ),
        Row(
            "Corrections of users are collected for the next training",
            cells=(f'{LISTINGS}::stored = post("/corrections"',),
            code=("web/function.py::correct",),
            tests=(
                "tests/web/test_function.py::test_a_correction_is_stored_with_its_record",
                "tests/web/test_whole.py::test_a_correction_is_stored_with_the_picture",
            ),
        ),
        Row(
            "Security: roles with the permissions they need and no more",
            cells=(f"{COURSE}::cloud = connect(WHERE)",),
            code=("studio/cloud.py::policy", "web/template.yaml::sagemaker:InvokeEndpoint"),
            tests=(
                "tests/studio/test_cloud.py::"
                "test_the_role_allows_named_actions_on_named_resources_only",
                "tests/web/test_template.py::test_no_policy_allows_a_star",
            ),
        ),
        Row(
            "SageMaker's built-in algorithm, on RecordIO",
            cells=(f'{LISTINGS}::client("sagemaker").create_training_job(**request)',),
            code=("studio/packing.py::write_recordio", "vision/recordio.py::"),
            tests=(
                "tests/vision/test_recordio.py::test_the_same_pictures_give_im2recs_bytes",
                "tests/notebooks/test_listings_web_app.py::"
                "test_the_built_in_algorithm_is_asked_for_and_declined_in_a_sentence",
            ),
            note="Its image runs on AWS only; here the request is checked and declined.",
        ),
        Row(
            "A SageMaker Pipeline that chains the steps",
            note="The notebooks call the steps one by one; the local cloud has no pipelines.",
            unless=("mlops.workflow", "Pipeline("),
        ),
        Row(
            "A model registry",
            note="Not offered by the local cloud, so no notebook registers its model.",
            unless=("ModelPackageGroup", "model_package"),
        ),
        Row(
            "A container image of its own",
            note="The scripts run in AWS's images, and here with this machine's Python.",
            unless=("docker",),
        ),
    ],
    "The project itself": [
        Row(
            "It runs with one command, and again, for whoever wants to check it",
            cells=(f"{COURSE}::bootstrap.ensure()",),
            code=("studio/execute.py::main", "tools/make_venv.py::main", "Makefile::run: venv"),
            tests=(
                "tests/test_notebook.py::test_it_is_committed_as_executed_from_top_to_bottom",
                "tests/test_setup.py::test_the_first_run_installs_and_says_so",
            ),
        ),
        Row(
            "It sums up what came out",
            cells=(f'{COURSE}::"test accuracy": f', f'{LISTINGS}::"test accuracy": f'),
            code=("studio/tables.py::summary",),
            tests=("tests/notebooks/test_listings_web_app.py::test_it_ends_with_the_summary",),
        ),
    ],
}
