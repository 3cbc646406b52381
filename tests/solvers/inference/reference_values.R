# R's values for the problems of reference_values.py, which says how to run this.
# Each entry is a list of values with the call that made it.

suppressPackageStartupMessages({
  library(VGAM); library(nnet); library(sandwich); library(brglm2); library(effects)
  library(jsonlite); library(numDeriv)
})
folder <- commandArgs(TRUE)[1]

# Rows are classes, and the intercept is the last column.
rows <- function(B) { B <- rbind(B); cbind(B[, -1, drop = FALSE], B[, 1]) }
# From VGAM's order of the coefficients (by feature, then class; the intercept first) to theirs.
order_of <- function(R, P) as.vector(t(matrix(seq_len(R * P), R, P)[, c(seq_len(P)[-1], 1)]))
formula_of <- function(features, response = "y") reformulate(features, response)

# ---- maximum likelihood ----------------------------------------------------------------------
likelihood <- function(data, features) {
  data$y <- factor(data$y); K <- nlevels(data$y); R <- K - 1; P <- length(features) + 1
  fit <- vglm(formula_of(features), multinomial(refLevel = 1), data, epsilon = 1e-15, maxit = 50)
  null <- vglm(y ~ 1, multinomial(refLevel = 1), data, epsilon = 1e-15)
  at <- order_of(R, P)
  V <- vcov(fit)[at, at]; b <- coef(fit)[at]
  lr <- sapply(features, function(f) {
    rest <- setdiff(features, f)
    2 * (logLik(fit) - logLik(vglm(formula_of(rest), multinomial(refLevel = 1), data,
                                   epsilon = 1e-15, maxit = 50)))
  })
  wald <- sapply(seq_along(features), function(j) {
    at <- j + P * (seq_len(R) - 1)
    sum(b[at] * solve(V[at, at], b[at]))
  })
  list(
    call = "VGAM::vglm(y ~ features, multinomial(refLevel = 1), epsilon = 1e-15); lr: 2 (logLik(fit) - logLik(fit without the feature)); wald: b' V^-1 b of a feature over the classes",
    coefficients = matrix(b, R, byrow = TRUE), standard_errors = matrix(sqrt(diag(V)), R, byrow = TRUE),
    covariance = V, log_likelihood = logLik(fit), log_likelihood_null = logLik(null),
    aic = AIC(fit), bic = AIC(fit, k = log(nrow(data))), lr = unname(lr), lr_df = R,
    lr_p = unname(pchisq(lr, R, lower.tail = FALSE)), wald = wald
  )
}

multinom_fit <- function(data, features) {
  data$y <- factor(data$y)
  multinom(formula_of(features), data, reltol = 1e-16, abstol = 0, maxit = 10000, trace = FALSE,
           Hess = TRUE)
}

by_nnet <- function(data, features) {
  fit <- multinom_fit(data, features)
  s <- summary(fit)
  # A quasi-Newton fit: the gradient at its end says how many digits hold.
  X <- cbind(1, as.matrix(data[features]))
  Y <- outer(data$y, sort(unique(data$y)), "==")
  p <- fitted(fit); if (ncol(Y) == 2) p <- cbind(1 - p, p)
  list(
    call = "nnet::multinom(factor(y) ~ features, reltol = 1e-16, abstol = 0, maxit = 10000, Hess = TRUE); summary()",
    coefficients = rows(coef(fit)), standard_errors = rows(s$standard.errors),
    log_likelihood = as.numeric(logLik(fit)), aic = AIC(fit),
    largest_gradient = max(abs(crossprod(X, Y - p)))
  )
}

# ---- sandwich covariances --------------------------------------------------------------------
# sandwich knows no fit of several classes: bread and scores of multinom-like fits, as it wants them.
estfun.scores <- function(x, ...) x$scores
bread.scores <- function(x, ...) x$V * nrow(x$scores)
nobs.scores <- function(object, ...) nrow(object$scores)
coef.scores <- function(object, ...) object$b

sandwiches <- function(data, features, group = NULL) {
  ml <- likelihood(data, features)
  classes <- sort(unique(data$y)); K <- length(classes)
  X <- cbind(as.matrix(data[features]), 1)
  z <- cbind(0, X %*% t(ml$coefficients))
  p <- exp(z) / rowSums(exp(z))
  residual <- (outer(data$y, classes, "==") - p)[, -1, drop = FALSE]
  scores <- do.call(cbind, lapply(seq_len(K - 1), function(k) residual[, k] * X))
  fit <- structure(list(scores = scores, V = ml$covariance,
                        b = as.vector(t(ml$coefficients))), class = "scores")
  n <- nrow(X); k <- ncol(scores)
  out <- list(
    call = "sandwich::sandwich(fit), with estfun = (Y - p) x X and bread = n vcov(vglm); HC1_standard_errors: of sandwich(fit, adjust = TRUE), n / (n - k) times HC0, k parameters of all classes",
    HC0 = sandwich(fit),
    HC1_standard_errors = matrix(sqrt(diag(sandwich(fit, adjust = TRUE))), K - 1, byrow = TRUE)
  )
  if (!is.null(group)) {
    out$cluster_call <- "sandwich::vcovCL(fit, group, type = 'HC0', cadjust = FALSE | TRUE) and type = 'HC1', cadjust = TRUE"
    out$cluster <- vcovCL(fit, group, type = "HC0", cadjust = FALSE)
    out$cluster_G <- vcovCL(fit, group, type = "HC0", cadjust = TRUE)
    out$cluster_HC1 <- vcovCL(fit, group, type = "HC1", cadjust = TRUE)
  }
  lapply(out, unname)
}

by_glm <- function(data, features) {
  control <- glm.control(epsilon = 1e-15, maxit = 100)
  fit <- glm(formula_of(features), binomial, data, control = control)
  last <- c(2:length(coef(fit)), 1)
  score <- sapply(features, function(f)
    anova(glm(formula_of(setdiff(features, f)), binomial, data, control = control), fit,
          test = "Rao")$Rao[2])
  whole <- anova(glm(y ~ 1, binomial, data, control = control), fit, test = "Rao")$Rao[2]
  list(
    call = "glm(y ~ features, binomial, epsilon = 1e-15); sandwich::vcovHC(fit, type = 'HC0' | 'HC1'); score: anova(fit without the feature, fit, test = 'Rao'), and of all features",
    coefficients = rbind(unname(coef(fit)[last])), covariance = unname(vcov(fit)[last, last]),
    HC0 = unname(vcovHC(fit, type = "HC0")[last, last]),
    HC1 = unname(vcovHC(fit, type = "HC1")[last, last]),
    score = unname(score), score_whole = whole
  )
}

# ---- Firth -----------------------------------------------------------------------------------
# The penalised log-likelihood sum log p_y + log |I| / 2 itself, for the values that brglm2 lacks.
penalised <- function(theta, X, Y, penalty = 0.5) {
  R <- ncol(Y) - 1; P <- ncol(X)
  z <- cbind(0, X %*% t(matrix(theta, R, byrow = TRUE)))
  p <- exp(z - apply(z, 1, max)); p <- p / rowSums(p); q <- p[, -1, drop = FALSE]
  information <- matrix(0, R * P, R * P)
  for (k in 1:R) for (l in 1:R) {
    w <- q[, k] * ((k == l) - q[, l])
    information[(k - 1) * P + 1:P, (l - 1) * P + 1:P] <- crossprod(X, w * X)
  }
  sum(log(rowSums(p * Y))) + penalty * as.numeric(determinant(information)$modulus)
}

# Profile-likelihood intervals: 2 (l* - max over the others) = the quantile of chi-squared, where
# l* and the maximum are of the penalised log-likelihood with the information of all parameters.
# The derivatives of optim are good to 1e-6, and so the maximum is good to 1e-12.
profile_intervals <- function(theta, X, Y, level = 0.95) {
  top <- penalised(theta, X, Y); se <- sqrt(diag(solve(-hessian(penalised, theta, X = X, Y = Y))))
  end <- function(j, side) {
    warm <- theta[-j]
    excess <- function(t) {
      at <- function(rest) append(rest, t, j - 1)
      best <- optim(warm, function(rest) -penalised(at(rest), X, Y), method = "BFGS",
                    control = list(reltol = 1e-15, maxit = 500))
      warm <<- best$par
      2 * (top + best$value) - qchisq(level, 1)
    }
    reach <- 1.5 * qnorm((1 + level) / 2) * se[j]
    while (excess(theta[j] + side * reach) < 0) reach <- 1.5 * reach
    uniroot(excess, sort(c(theta[j], theta[j] + side * reach)), tol = 1e-11)$root
  }
  t(sapply(seq_along(theta), function(j) c(end(j, -1), end(j, 1))))
}

firth <- function(data, features) {
  classes <- sort(unique(data$y)); R <- length(classes) - 1; P <- length(features) + 1
  X <- cbind(as.matrix(data[features]), 1)
  Y <- outer(data$y, classes, "==") * 1
  data$y <- factor(data$y)
  control <- list(epsilon = 1e-13, maxit = 1000)
  if (R == 1) {
    fit <- glm(formula_of(features), binomial, data, method = "brglmFit", type = "AS_mean",
               epsilon = 1e-13, maxit = 1000)
    call <- "glm(y ~ features, binomial, method = brglm2::brglmFit, type = 'AS_mean', epsilon = 1e-13)"
    B <- rows(coef(fit)); at <- c(2:P, 1)
    V <- vcov(fit)[at, at]
  } else {
    fit <- brmultinom(formula_of(features), data, type = "AS_mean", ref = 1, control = control)
    call <- "brglm2::brmultinom(y ~ features, type = 'AS_mean', ref = 1, epsilon = 1e-13)"
    B <- rows(coef(fit))
    # vcov goes by class, and the intercept is the first of each.
    at <- as.vector(sapply(seq_len(R) - 1, function(k) k * P + c(2:P, 1)))
    V <- vcov(fit)[at, at]
  }
  theta <- as.vector(t(B))
  g <- grad(penalised, theta, X = X, Y = Y)
  out <- list(
    call = paste0(call, "; penalised log-likelihood and profile intervals (0.95) by optim and uniroot of its formula, see reference_values.R"),
    coefficients = unname(B), standard_errors = matrix(sqrt(diag(V)), R, byrow = TRUE),
    covariance = unname(V), log_likelihood = penalised(theta, X, Y, 0),
    penalised_log_likelihood = penalised(theta, X, Y), largest_gradient = max(abs(g)))
  out$profile_intervals <- aperm(array(profile_intervals(theta, X, Y), c(P, R, 2)), c(2, 1, 3))
  # The likelihood-ratio test of a feature: without it, but with the information of all parameters.
  out$penalised_lr <- sapply(seq_along(features), function(j) {
    zero <- j + P * (seq_len(R) - 1)
    at <- function(rest) { full <- numeric(R * P); full[-zero] <- rest; full }
    best <- optim(theta[-zero], function(rest) -penalised(at(rest), X, Y), method = "BFGS",
                  control = list(reltol = 1e-15, maxit = 500))
    2 * (out$penalised_log_likelihood + best$value)
  })
  out
}

# ---- predicted probabilities -----------------------------------------------------------------
probability_intervals <- function(data, features, row, feature, levels) {
  data <- data[c(features, "y")]; data$y <- factor(data$y)
  fit <<- multinom(formula_of(features), data, reltol = 1e-16, abstol = 0, maxit = 10000,
                   trace = FALSE, Hess = TRUE)
  fit$call$formula <- formula_of(features); fit$call$data <- data
  given <- unlist(data[row, setdiff(features, feature)])
  e <- Effect(feature, fit, xlevels = setNames(list(levels), feature),
              fixed.predictors = list(given.values = given), confidence.level = 0.95)
  shape <- function(m) unname(as.matrix(m))
  x <- data[rep(row, length(levels)), features]; x[[feature]] <- levels
  list(
    call = "effects::Effect(feature, nnet::multinom(...), xlevels, fixed.predictors = list(given.values)): intervals of 0.95 by the delta method for the logit of a probability (Fox and Hong 2009)",
    X = unname(as.matrix(x)), probabilities = shape(e$prob), standard_errors = shape(e$se.prob),
    logit_standard_errors = shape(e$se.logit), lower = shape(e$lower.prob), upper = shape(e$upper.prob)
  )
}

# ---- all of it -------------------------------------------------------------------------------
read <- function(name) read.csv(file.path(folder, paste0(name, ".csv")))
features_of <- function(data) setdiff(names(data), c("y", "group"))
results <- list()
for (name in c("anes96", "spector", "fair", "affair", "clustered", "separated2", "separated3")) {
  data <- read(name); features <- features_of(data)
  entry <- list()
  if (!startsWith(name, "separated")) {
    entry$ml <- likelihood(data, features); cat("ml ")
    entry$multinom <- by_nnet(data, features)
    entry$sandwich <- sandwiches(data, features, data$group); cat("sandwich ")
    if (length(unique(data$y)) == 2) entry$glm <- by_glm(data, features)
  }
  if (name %in% c("spector", "clustered", "separated2", "separated3"))
    entry$firth <- firth(data, features)
  if (name == "anes96")
    entry$probabilities <- probability_intervals(data, features, 1, "educ", c(1, 4, 7))
  results[[name]] <- entry
  cat(name, "\n")
}
packages <- c("VGAM", "nnet", "sandwich", "brglm2", "effects", "numDeriv", "jsonlite")
results$packages <- c(list(R = paste(R.version$major, R.version$minor, sep = ".")),
                      sapply(packages, function(p) as.character(packageVersion(p)), simplify = FALSE))
write_json(results, "r_values.json", digits = I(15), auto_unbox = TRUE, matrix = "rowmajor")
