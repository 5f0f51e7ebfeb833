"""The members of timm that the zoo exports, by the smallest image size (pixels: 96, 128, 160, 192, 224 ...) they take.

One small member of each family and kind of block; 96 pixels keep exports quick and make last maps of 3 x 3.
"""

TIMM_SIZES = {
    96: """
        lambda_resnet26t botnet26t_256 sebotnet33ts_256 eca_botnext26ts_256 mobileone_s0 gernet_s repvgg_a0
        regnetz_b16 regnetz_b16_evos resnext26ts seresnext26ts gcresnext26ts cait_xxs24_224 coat_tiny
        coat_lite_tiny convit_tiny convmixer_768_32 convnext_atto convnext_atto_ols convnextv2_atto
        convnext_zepto_rms cpubone_nano csatv2 cs3darknet_focus_s darknet17 cspresnet50 cspresnext50
        sedarknet21 cs3sedarknet_l cspnext_tiny davit_tiny deit_tiny_patch16_224
        deit_tiny_distilled_patch16_224 deit3_small_patch16_224 densenet121 densenetblur121d dla46_c
        dla46x_c dla34 dla60_res2net dpn48b dpn68b edgenext_xx_small efficientformerv2_s0
        test_efficientnet_gn test_efficientnet_ln test_efficientnet_evos mobilenetv1_100 mobilenetv2_035
        mnasnet_small tinynet_e semnasnet_050 efficientnet_b0 efficientnet_lite0 efficientnetv2_rw_t
        mixnet_s fbnetc_100 spnasnet_100 efficientnet_es tf_efficientnet_b0 tf_efficientnetv2_b0
        tf_efficientnet_cc_b0_4e gc_efficientnetv2_rw_t mobilenet_edgetpu_100 efficientvim_m1
        efficientvit_b0 efficientvit_l1 efficientvit_m0 eva02_tiny_patch14_224 vit_tiny_patch16_dinov3_qkvb
        vit_small_plus_patch16_dinov3 vit_small_patch16_rope_224 vit_small_patch16_rope_mixed_224
        vit_pe_core_tiny_patch16_384 beit_base_patch16_224 fasternet_t0 fastvit_t8 fastvit_sa12
        focalnet_tiny_srf gcvit_xxtiny ghostnet_050 ghostnetv2_100 ghostnetv3_050 hardcorenas_a hgnet_tiny
        hgnetv2_b0 hiera_tiny_224 sam2_hiera_tiny hieradet_small hrnet_w18_small iformer_t
        inception_next_atto inception_resnet_v2 inception_v3 inception_v4 lcnetv2_small levit_128s
        levit_conv_128s lowformer_b0 mambaout_femto coatnet_pico_rw_224 maxvit_pico_rw_256
        coatnext_nano_rw_224 coatnet_rmlp_nano_rw_224 coatnet_nano_cc_224 maxxvit_rmlp_nano_rw_256
        maxxvitv2_nano_rw_256 poolformer_s12 poolformerv2_s12 caformer_s18 convformer_s18 gmlp_ti16_224
        gmixer_12_224 resmlp_12_224 mixer_s32_224 lcnet_050 mobilenetv3_small_050
        tf_mobilenetv3_small_minimal_100 mobilenetv4_conv_small_050 mobilenetv4_hybrid_medium fbnetv3_b
        mobilevit_xxs mobilevitv2_050 mvitv2_tiny nasnetalarge pnasnet5large nest_tiny nextvit_small
        nf_regnet_b0 nf_resnet26 nf_ecaresnet26 eca_nfnet_l0 pit_ti_224 pit_ti_distilled_224 pvt_v2_b0
        pvt_v2_b2_li rdnet_tiny regnetx_002 regnety_002 regnetz_005 regnetv_040 repghostnet_050 repvit_m0_9
        res2net50_26w_4s res2next50 resnest14d resnest50d_4s2x40d resnet10t resnet18 resnet26d resnetblur18
        seresnet18 ecaresnet26t ecaresnext26t_32x4d seresnext26d_32x4d resnext50_32x4d resnetaa34d
        resnetrs50 wide_resnet50_2 resnet50_gn ecaresnetlight resnetv2_18d resnetv2_50 resnetv2_50x1_bit
        resnetv2_50d_gn resnetv2_50d_evos resnetv2_50d_frn rexnet_100 rexnetr_100 selecsls42
        legacy_seresnet18 legacy_seresnext26_32x4d sequencer2d_s shvit_s1 skresnet18 skresnext50_32x4d
        starnet_s050 swiftformer_xs swin_tiny_patch4_window7_224 swin_s3_tiny_224 swinv2_tiny_window8_256
        swinv2_cr_tiny_224 tiny_vit_5m_224 tnt_s_patch16_224 tresnet_m twins_pcpvt_small twins_svt_small
        visformer_tiny vit_tiny_patch16_224 vit_dwee_patch16_reg1_gap_256 vit_dpwee_patch16_reg1_gap_256
        vit_small_patch14_dinov2 flexivit_small vit_tiny_r_s16_p8_224 vit_relpos_small_patch16_224
        vit_srelpos_small_patch16_224 vit_relpos_small_patch16_rpn_224 vitamin_small_224 volo_d1_224
        ese_vovnet19b_dw ese_vovnet19b_slim vovnet39a eca_vovnet39b legacy_xception xception41 xception41p
        xcit_nano_12_p16_224 samvit_base_patch16 naflexvit_base_patch16_gap test_mambaout
    """,
    224: """
        haloregnetz_b efficientformer_l1
    """,
    240: """
        crossvit_9_240 crossvit_9_dagger_240
    """,
    256: """
        halonet26t eca_halonext26ts bat_resnext26ts
    """,
}
