"""Keys that the libraries themselves write into settings, taken from their sources.

sae-lens 2.1.3, 3.22.1, 4.4.5, 5.11.0 and 6.54.12 (configs of SAEs, of their training, of the run; keys of metadata),
eai-sparsify 1.3.3, dictionary-learning 0.1.0 (`config` of every trainer and buffer), circuit-tracer 0.5.0 (what its
loader reads), lm-saes (`hyperparams.json` of a Llama Scope release and the config class of later ones).
"""

from __future__ import annotations

LIBRARY_KEYS: dict[str, str] = {
    "sae_lens": """
        act_store_device activation_fn activation_fn_kwargs activation_fn_str activation_normalization_factor
        activations_mixing_fraction adam_beta1 adam_beta2 apply_b_dec_to_input architecture autocast autocast_lm
        aux_loss_coefficient b_dec_init_method bottleneck_factor cached_activations_path checkpoint_path compile_llm
        compile_sae context_size d_in d_out d_sae dataset_path dataset_trust_remote_code dead_feature_threshold
        dead_feature_window decoder_heuristic_init decoder_heuristic_init_norm decoder_init_norm decoder_orthogonal_init
        device disable_concat_sequences dtype eval_batch_size_prompts eval_every_n_wandb_logs exclude_special_tokens
        expansion_factor feature_sampling_window finetuning_method finetuning_scaling_factor finetuning_tokens
        from_pretrained_path hf_hook_name hf_hook_name_out hook_eval hook_head_index hook_head_index_out hook_layer
        hook_name hook_name_out hook_point hook_point_eval hook_point_head_index hook_point_layer
        init_encoder_as_decoder_transpose is_dataset_tokenized jumprelu_bandwidth jumprelu_init_threshold
        jumprelu_sparsity_loss_mode jumprelu_ste_to_input jumprelu_tanh_scale k kval_topk l0_coefficient
        l0_warm_up_steps l1_coefficient l1_warm_up_steps llm_compilation_mode llm_device log_activations_store_to_wandb
        log_optimizer_state_to_wandb log_to_wandb log_weights_to_wandb logger lp_norm lr lr_decay_steps lr_end
        lr_scheduler_name lr_warm_up_steps matryoshka_widths max_iterations metadata model_class_name
        model_from_pretrained_kwargs model_kwargs model_name mse_loss_normalization n_attn_layers
        n_batches_for_norm_estimate n_batches_in_buffer n_checkpoints n_eval_batches n_heads n_restart_cycles
        neuronpedia_id noise_scale normalize_activations normalize_sae_decoder output_path pre_act_loss_coefficient
        prefetch_llm_batches prepend_bos rescale_acts_by_decoder_norm reshape_activations residual_threshold resume
        resume_from_checkpoint run_name sae_compilation_mode sae_diff_type sae_lens_training_version sae_lens_version
        save_final_checkpoint scale_sparsity_penalty_by_decoder_norm seed seqpos_slice sequence_separator_token
        stop_on_duplicate_support store_batch_size_prompts streaming target_l0 tied_weights topk_threshold_lr
        train_batch_size_tokens training_tokens use_cached_activations use_chat_formatting use_ghost_grads
        use_matryoshka_aux_loss use_sparse_activations verbose wandb_entity wandb_id wandb_log_frequency wandb_project
    """,
    "sparsify cfg": """
        activation expansion_factor k multi_topk normalize_decoder num_latents skip_connection transcode
    """,
    "sparsify run": """
        auxk_alpha batch_size ctx_len data_args data_preprocessing_num_proc dataset dead_feature_threshold
        distribute_modules exclude_tokens finetune grad_acc_steps hf_token hookpoints init_seeds k_decay_steps
        layer_stride layers load_in_8bit log_to_wandb loss_fn lr lr_warmup_steps max_examples micro_acc_steps model
        optimizer resume revision run_name sae save_best save_dir save_every shuffle_seed split text_column
        wandb_log_frequency
    """,
    "dictionary_learning trainer": """
        activation_dim anneal_start auxk_alpha bandwidth decay_start device dict_class dict_size group_fractions
        group_sizes group_weights k l1_penalty layer lm_name lr n_sparsity_updates p_end p_start resample_steps seed
        sparsity_function sparsity_penalty sparsity_queue_length sparsity_warmup_steps steps submodule_name target_l0
        threshold_beta threshold_start_step top_k_aux trainer_class wandb_name warmup_steps
    """,
    "dictionary_learning buffer": """
        ctx_len d_submodule device io layer n_ctxs out_batch_size refresh_batch_size
    """,
    "circuit-tracer": """
        model_name model_kind feature_input_hook feature_output_hook activation k scan transcoders repo_id revision
        subfolder
    """,
    "lm-saes": """
        device seed dtype hook_point_in hook_point_out use_decoder_bias apply_decoder_bias_to_pre_encoder
        expansion_factor d_model d_sae bias_init_method act_fn jump_relu_threshold norm_activation
        dataset_average_activation_norm decoder_exactly_fixed_norm sparsity_include_decoder_norm use_glu_encoder
        init_decoder_norm init_encoder_norm init_encoder_with_decoder_transpose lp l1_coefficient
        l1_coefficient_warmup_steps top_k k_warmup_steps use_batch_norm_mse use_ghost_grads tp_size ddp_size sae_type
        sae_pretrained_name_or_path strict_loading jumprelu_threshold_window jumprelu_threshold_grad_scale
        force_unit_decoder_norm use_triton_kernel sparsity_threshold_for_triton_spmm_kernel modalities
    """,
}
